"""What is behind each figure of the paper, as plain data: curves with intervals over seeds, paths, single networks.

A picture is written to ``figures/KEY.json`` and drawn from there (`isthmus.report.claims`), without any network.
"""

from dataclasses import dataclass, field

PAPER, CRITICAL, SEARCH = "paper", "critical", "search"
"""Two readings of a figure: networks trained by the paper's recipe, and critical points that were followed. Claims
about the cost of identity alone are read from representations that a search found."""

READINGS = {PAPER: "as the paper trains", CRITICAL: "at critical points", SEARCH: "minima that were searched for"}
"""What each is called."""

Numbers = tuple[float | None, ...]


@dataclass(frozen=True)
class Curve:
    """One quantity against x, over seeds.

    Args:
        label: what it is; symbols in braces, as everywhere in reports.
        x: abscissae.
        median: over the networks at each x; None where none has the quantity.
        low: lower end of its 95 % bootstrap interval; None for fewer than 3 networks.
        high: upper end.
        networks: how many networks there are at each x.
        certified: how many of them are certified critical points. Where not all are, the point is drawn hollow.
        band: whether low and high are a range over layers (median over seeds), not an interval.
    """

    label: str
    x: tuple[float, ...]
    median: Numbers
    low: Numbers
    high: Numbers
    networks: tuple[int, ...]
    certified: tuple[int, ...]
    band: bool = False


@dataclass(frozen=True)
class Plot:
    """One pair of axes.

    Args:
        title: above it.
        x_label: of the x axis.
        y_label: of the y axis.
        curves: drawn in order.
        horizontals: values of y to mark, each with its label.
        view: limits of y; None for all.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    horizontals: tuple[tuple[float, str], ...] = ()
    view: tuple[float, float] | None = None


@dataclass(frozen=True)
class Network:
    """One network's path.

    Args:
        label: which, as the panel's title says: its reading, L̃, seed.
        certified: whether it is a certified critical point; else its lines are dashed and its markers hollow.
        residual: its largest stationarity residual (E9).
        positions: ``p_0 … p_L``.
        spectra_a: singular values of ``A_0 … A_L``, the largest few of each.
        spectra_w: singular values of ``W_1 … W_L``, likewise; a layer lies at its midpoint.
        layers: columns of the table of mechanics by layer, as in `isthmus.columns.LAYERS`.
    """

    label: str
    certified: bool
    residual: float
    positions: tuple[float, ...]
    spectra_a: tuple[tuple[float, ...], ...] = ()
    spectra_w: tuple[tuple[float, ...], ...] = ()
    layers: dict[str, Numbers] = field(default_factory=dict)


@dataclass(frozen=True)
class Way:
    """A path of representations in two dimensions: projections of ``A_0 … A_L`` on two common directions.

    Args:
        label: the choice of step-sizes.
        certified: as in `Network`.
        x: first coordinate of each state.
        y: second.
    """

    label: str
    certified: bool
    x: tuple[float, ...]
    y: tuple[float, ...]


@dataclass(frozen=True)
class Picture:
    """One figure.

    Args:
        key: of its files: ``figure1a`` … ``figure3``.
        title: its head.
        statement: what the paper shows or says there, in our words, with its source.
        finding: what ours shows, made from the numbers.
        shows: ``curves`` (`plots`), ``spectra`` or ``energies`` (`networks`), or ``ways`` (`ways`).
        plots: for curves.
        networks: for spectra (A and W along p) and energies (kinetic, potential, H along p).
        ways: for paths in two dimensions.
        notes: what is hidden or missing.
    """

    key: str
    title: str
    statement: str
    finding: str
    shows: str
    plots: tuple[Plot, ...] = ()
    networks: tuple[Network, ...] = ()
    ways: tuple[Way, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def certified(self) -> bool:
        """Whether everything in it is of certified critical points."""
        counted = [
            n == c
            for plot in self.plots
            for curve in plot.curves
            for n, c in zip(curve.networks, curve.certified, strict=True)
        ]
        return all([*counted, *(n.certified for n in self.networks), *(w.certified for w in self.ways)])
