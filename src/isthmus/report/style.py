"""One look for every figure: colours that colour-blind readers tell apart, and symbols in both notations.

Colours: Okabe and Ito's palette for quantities, Paul Tol's "muted" one for classes, viridis for a scale.
"""

from collections.abc import Sequence

INK = "#1b1f24"
GREY = "#6b7280"
PALE = "#c3c8cf"
GRID = "#e6e8eb"
BAND = "#e3eef7"
BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
ORANGE = "#e69f00"
SKY = "#56b4e9"
PURPLE = "#aa4499"

CLASSES = (
    *("#332288", "#88ccee", "#44aa99", "#117733", "#999933"),
    *("#ddcc77", "#cc6677", "#882255", "#aa4499", "#222222"),
)
SCALE = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#a5c93a", "#d8c81f"),
)

# Labels are written with these names in braces: {p}, {L}, … and rendered for a browser or for matplotlib.
_SYMBOLS = {
    "p": ("<i>p</i>", "$p$"),
    "L": ("<i>L̃</i>", r"$\tilde{L}$"),
    "l": ("<i>ℓ</i>", r"$\ell$"),
    "A": ("<i>A</i><sub>p</sub>", "$A_p$"),
    "W": ("<i>W</i><sub>p</sub>", "$W_p$"),
    "B": ("<i>B</i><sub>p</sub>", "$B_p$"),
    "H": ("<i>H</i>", "$H$"),
    "K": ("<i>K</i>", "$K$"),
    "COI": ("‖<i>A</i>‖²<sub>K</sub>", r"$\|A\|^2_K$"),
    "rank": ("−2<i>H</i>/<i>L̃</i>", r"$-2H/\tilde{L}$"),
    "rho": ("<i>ρ<sub>ℓ</sub></i>", r"$\rho_\ell$"),
    "pl": ("<i>p<sub>ℓ</sub></i>", r"$p_\ell$"),
    "speed": (
        "‖∂<sub>p</sub><i>A</i>‖<sub>K+γI</sub>",
        r"$\|\partial_p A\|_{K+\gamma I}$",
    ),
    "k": ("<i>k</i>*", "$k^*$"),
}
_WEB = {name: web for name, (web, _) in _SYMBOLS.items()}
_TEX = {name: tex for name, (_, tex) in _SYMBOLS.items()}


def web(label: str) -> str:
    """A label for the browser: symbols as HTML; the rest must hold no markup of a user's.

    >>> web("spectrum of {A}")
    'spectrum of <i>A</i><sub>p</sub>'
    """
    return label.format_map(_WEB)


def tex(label: str) -> str:
    """A label for matplotlib: symbols in its mathematics mode.

    >>> tex("spectrum of {A}")
    'spectrum of $A_p$'
    """
    return label.format_map(_TEX)


def quoted(text: str) -> str:
    """A user's text made safe to stand in a label: braces doubled, the signs of HTML and TeX replaced."""
    for sign, safe in (("{", "{{"), ("}", "}}"), ("<", "‹"), (">", "›"), ("&", "+"), ("$", "S")):
        text = text.replace(sign, safe)
    return text


def shade(fraction: float, scale: Sequence[str] = SCALE) -> str:
    """The colour at `fraction` in [0, 1] of a continuous scale."""
    place = min(max(fraction, 0.0), 1.0) * (len(scale) - 1)
    low = min(int(place), len(scale) - 2)
    weight = place - low
    pairs = zip(_channels(scale[low]), _channels(scale[low + 1]), strict=True)
    return "#" + "".join(f"{round(a + weight * (b - a)):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    """Red, green, blue of "#rrggbb"."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def shortened(name: str, places: int) -> str:
    """A dotted name cut at its front, where names of one network are most alike.

    >>> shortened("encoder.layers.11.attention", 16)
    '…rs.11.attention'
    """
    return name if len(name) <= places else "…" + name[len(name) - places + 1 :]
