"""Lines that nobody should type, and files that nobody should have written: made from a seed, the same every time."""

import json
import random
import struct
from collections.abc import Iterator

MAGICS = (
    *("mlx_cluster", "mlx_load", "mlx_reload", "mlx_generate", "mlx_chat", "mlx_step", "mlx_break", "mlx_trace"),
    *("mlx_check", "mlx_diff", "mlx_patch", "mlx_show", "mlx_freeze", "mlx_doctor", "mlx_bench"),
)  # fmt: skip

NUMBERS = (
    "-1",
    "0",
    "1",
    "2",
    "³",
    "½",
    "1e3",
    "0x10",
    "nan",
    "inf",
    "-0.5",
    "1_0",
    "٣",
    "''",
    "1,2",
    "1:",
    ":",
    "a:b",
)
HUGE = ("99999999999999999999", "1e400", "-9" * 20)
SITES = (
    *("layers.3.output", "layers.99.output", "layers.-1", "layers.*", "**", "*", "..", "lm_head", "layers.3.resid_mid"),
    *("layers.3.self_attn", "layers.[", "layers.3.self_attn.rope#9.input", "model.layers", "layers.{}", "embed.input"),
)  # fmt: skip
EXPRESSIONS = (
    *("absmax > 1", "absmax >", "1/0", "(", ")", "__import__('os')", "value.x.y", "lambda: 0", "x = 1", "while True: pass"),
    *("[0]*3[", "nan nan", "'", '"', "def f(): pass", "shape[99] == 1", "layer + token", "min.max", "\\", "{", "λ", "print"),
)  # fmt: skip
PATHS = (
    "/",
    "/nope/nothing",
    ".",
    "",
    "~",
    "/dev/null",
    "/etc/passwd",
    "a\u200bb",
    "../" * 30,
    "x" * 300,
    "/proc/self/mem",
)
TEXTS = (
    *("hello", "?", "??", "$HOME", "{name}", "{", "}", "!ls", "%", "%%", "\\n", "\t", "\u202e", "🦜", "é" * 50, "\x01", "|", ";"),
    *("'", '"', "'\"", "--", "-", "---", "--=", "--no-such", "-o", "-o 1bad", "-o class", "--out", "--help=1", "#", "a" * 3000),
    *("None", "[1, 2", "(1, 2)", "<|im_start|>", "&&", "`id`", "\ufeff", "\ud7ff", "-h-", "--raw=1", "--temp=", "--seed=x"),
)  # fmt: skip
WORDS = {
    "mlx_cluster": ("start", "attach", "status", "logs", "interrupt", "profiles", "profiles new", "sttop", "stop now", "restart x"),
    "mlx_step": (
        *("into", "over", "out", "layer", "rank", "token", "until", "back", "back layer", "p", "where", "list", "args", "a", "w"),
        *("locals", "close", "pm", "restart", "continu", "unt layer=", "unt rank=99", "until token=x", "l 3 x", "into 3", "p p"),
    ),
    "mlx_show": ("step", "kv", "plan", "tensor", "attention", "timeline", "lens", "stats", "tokens", "diff", "shapes", "cluster", "stepp"),
}  # fmt: skip
OPTIONS = {
    "mlx_cluster": ("--ranks", "--profile", "--keep", "--network", "--environment"),
    "mlx_load": ("--split", "--dtype", "--ranks", "--adapter", "--code", "--trust-remote-code"),
    "mlx_generate": (
        *("--temp", "--top-p", "--top-k", "--min-p", "--seed", "--stop", "--repetition-penalty", "--max-kv-size", "--kv-bits"),
        *("--logit-bias", "--prefill-step-size", "--kv-group-size", "--prompt-cache", "--raw", "-o", "--presence-penalty"),
    ),
    "mlx_break": ("--rank", "--token", "--once", "--ignore", "--delete", "--enable", "--disable", "--if"),
    "mlx_patch": ("--ablate", "--scale", "--add", "--replace", "--tokens", "--delete", "--save", "--load"),
    "mlx_trace": ("--sites", "--prefill-step-size", "--raw", "-o"),
    "mlx_diff": ("--sites", "--tol", "--raw", "--no-forced", "-o"),
}  # fmt: skip


def lines(seed: int, count: int) -> Iterator[str]:
    """So many malformed lines; some are fine by accident, and none ends the cluster or asks another host."""
    chance = random.Random(seed)
    for _ in range(count):
        magic = chance.choice(MAGICS)
        words = []
        if known := WORDS.get(magic):
            words.append(chance.choice(known) if chance.random() < 0.8 else _word(chance))
        elif magic in ("mlx_generate", "mlx_chat", "mlx_step"):
            words.append("--max-tokens 2")
        for _ in range(chance.randrange(4)):
            if chance.random() < 0.6 and magic in OPTIONS:
                words.append(chance.choice(OPTIONS[magic]))
            words.append(_word(chance))
        if magic == "mlx_bench":
            words.append("--no-such-row")
        if magic == "mlx_load":
            words.append("./no/such/model")
        yield f"%{magic} {' '.join(words)}"


def _word(chance: random.Random) -> str:
    return chance.choice(chance.choice((NUMBERS, HUGE, SITES, EXPRESSIONS, PATHS, TEXTS)))


def spoil_text(data: bytes, chance: random.Random) -> bytes:
    """A JSON file with something wrong: cut, bytes changed, or another value somewhere."""
    how = chance.randrange(4)
    if how == 0:
        return data[: chance.randrange(len(data))]
    if how == 1:
        at = chance.randrange(len(data))
        return data[:at] + chance.randbytes(3) + data[at + 3 :]
    return json.dumps(_spoil_json(json.loads(data), chance)).encode()


def spoil(data: bytes, chance: random.Random) -> bytes:
    """A safetensors file with something wrong: cut, bytes changed, or another value somewhere in its header."""
    how = chance.randrange(5)
    if how == 0:
        return data[: chance.randrange(len(data))]
    size = struct.unpack("<Q", data[:8])[0]
    if how == 1:
        changed = bytearray(data)
        for _ in range(chance.randrange(1, 20)):
            changed[chance.randrange(8 + size)] = chance.randrange(256)
        return bytes(changed)
    if how == 2:
        return chance.randbytes(chance.randrange(200))
    header = json.loads(data[8 : 8 + size])
    place = header["__metadata__"] if how == 3 and "__metadata__" in header else header
    name = chance.choice(sorted(place))
    if how == 4 and isinstance(place[name], dict):
        place, name = place[name], chance.choice(sorted(place[name]))
    old = place[name]
    try:
        inner = json.loads(old) if isinstance(old, str) else None
    except ValueError:
        inner = None
    if isinstance(inner, dict | list) and chance.random() < 0.8:
        place[name] = json.dumps(_spoil_json(inner, chance))
    elif chance.random() < 0.3:
        del place[name]
    else:
        place[name] = chance.choice(VALUES)
    packed = json.dumps(header).encode()
    return struct.pack("<Q", len(packed)) + packed + data[8 + size :]


VALUES = (
    None,
    -1,
    0,
    1.5,
    "",
    "x",
    [],
    [-1],
    [2**60],
    {},
    True,
    2**70,
    "../../x",
    "[",
    ["a"],
    {"a": 1},
    "nan",
    "🦜",
)


def _spoil_json(value: object, chance: random.Random) -> object:
    """One leaf or branch of a JSON value, another."""
    if isinstance(value, dict) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        if chance.random() < 0.15:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: _spoil_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.85:
        at = chance.randrange(len(value))
        return [*value[:at], _spoil_json(value[at], chance), *value[at + 1 :]]
    return chance.choice(VALUES)
