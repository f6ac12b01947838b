"""``%mlx_doctor``: what is wrong with this machine, the other hosts, or the link."""

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from mlx_nb.client.current import current
from mlx_nb.client.doctor import doctor
from mlx_nb.client.leftovers import clean, describe
from mlx_nb.client.magics.parsing import Parser, one_line_errors, parse_words
from mlx_nb.client.options import add_doctor_options
from mlx_nb.client.progress import ProgressLine
from mlx_nb.shared.checkup import Checkup


def doctor_parser() -> Parser:
    parser = Parser("%mlx_doctor", "look at this machine, the other hosts, and the link between them")
    add_doctor_options(parser)
    parser.add_argument("--clean", action="store_true", help="end what earlier clusters have left behind")
    return parser


@magics_class
class DoctorMagics(Magics):
    """Looking for what is wrong."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_doctor(self, line: str) -> Checkup | None:
        """Look at hosts and link: see ``%mlx_doctor --help``."""
        found = parse_words(doctor_parser(), line)
        if found.clean:
            print(describe(clean()))
            return None
        hosts, profile = found.hosts, found.profile
        if current.cluster is not None and hosts is None and profile is None:
            # After a start it is the running cluster's hosts that matter.
            hosts, profile = current.cluster.spec.hosts or None, current.cluster.spec.profile
        with ProgressLine() as progress:
            return doctor(hosts, profile, model=found.model, tell=progress.tell)
