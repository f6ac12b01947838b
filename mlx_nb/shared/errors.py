"""Every error is a pair: what is wrong, and what to type next.

Both parts are positional, so that an error pickles unchanged on its way back from an engine.
Only the magics turn these into IPython's one-line errors.
"""


class MlxNbError(Exception):
    """Base of every error raised by mlx_nb.

    Attributes:
        problem: What is wrong, and on which rank, as one sentence.
        fix: What to type next, as one sentence.
    """

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem, fix)
        self.problem = problem
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.problem} {self.fix}"


class ClusterError(MlxNbError):
    """The cluster could not be started, reached or stopped."""


class NoClusterError(ClusterError):
    """Something needs a cluster, and none is running."""


class DifferentClusterError(ClusterError):
    """A cluster runs already, and it is not the one that was asked for."""


class ClusterStartError(ClusterError):
    """The controller or the ranks did not come up; whatever had started was stopped again."""


class TooFewEnginesError(ClusterStartError):
    """Fewer ranks answered than were asked for."""


class ProfileError(ClusterError):
    """A profile is unknown or cannot be read."""


class RankLostError(ClusterError):
    """A rank's process ended or became unreachable."""


class RankSilentError(ClusterError):
    """A rank has given no sign of life for the length of the deadline."""


class NoModelError(MlxNbError):
    """Something needs a loaded model, and none is loaded."""


class ModelNotFoundError(MlxNbError):
    """No model is known by that name, folder or Hugging Face id."""


class ModelError(MlxNbError):
    """The model's files cannot be used: configuration, tokenizer or architecture."""


class VersionError(ModelError):
    """A package that models need is not one of the versions that mlx_nb works with."""


class WeightsError(ModelError):
    """A weight file is missing, truncated, or lacks a tensor that this rank owns."""


class UnfitWeightsError(WeightsError):
    """The files' tensors and the model's parameters do not belong together.

    Attributes:
        tensor: The first that does not fit; it stays on its rank.
    """

    def __init__(self, problem: str, fix: str, tensor: str = "") -> None:
        super().__init__(problem, fix)
        self.tensor = tensor


class AdapterError(ModelError):
    """An adapter is not there, is damaged, or was made for another model."""


class RemoteCodeError(ModelError):
    """A model's folder brings code of its own, and nobody has said that it may run."""


class CodeError(ModelError):
    """A model file under work is not Python, raises, or does not fit the weights; the message names file and line."""


class PartOfModelError(WeightsError):
    """mlx-lm cannot build a model from the weight files of one rank's share alone."""


class PlanError(MlxNbError):
    """The layers cannot be divided over the ranks in the way that was asked for."""


class PromptError(MlxNbError):
    """The prompt cannot be fed: empty, not tokens, or not in the vocabulary."""


class PromptCacheError(MlxNbError):
    """A prompt cache cannot be written, read, or used with this model."""


class OptionError(MlxNbError):
    """An option's value is out of range."""


class SiteError(MlxNbError):
    """No such site in this model, or it is not observable."""


class TraceError(MlxNbError):
    """A recorded value is no longer there, or a trace's file cannot be used."""


class ValueShapeError(MlxNbError):
    """A value that was assigned does not fit where it should go."""


class RunError(MlxNbError):
    """A run failed on a rank; `pipe.last` keeps what it had produced."""


class RunAbortedError(RunError):
    """Another rank gave the run up, and this one stopped with it: an echo, not the cause."""


class RunTimeoutError(RunError, TimeoutError):
    """A run has not ended in the time that somebody wanted to wait; it still goes on."""


class RunInterruptedError(RunError):
    """Another rank was interrupted, and this one stopped with it."""


class RunFinished(MlxNbError):
    """The run has no further stop: it stands past its last token."""


class TransferTooLargeError(MlxNbError):
    """An array is too large to hand over whole; the message names a slice to ask for."""
