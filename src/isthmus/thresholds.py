"""The numbers at which the program changes its words about a run, each with its reason: no two rooms differ."""

CRITICAL = 1e-4
"""Largest stationarity residual (E9) of a critical point. Where the gradient is this part of the weights, energies, H
and ranks of converged networks no longer change in the digits that are printed (docs/notes/solver.md)."""

CRITICAL_AT_KINKS = 1e-3
"""The same up to the choice of derivatives at ReLU's kinks. States within a stated width of a kink count as on it, so
that the residual cannot fall below the order of that width: `certify`'s default is 1e-3."""

DIGITS = 1e-3
"""Residual up to which the digits of energies and H may be read: their error is of the residual's order."""

SHAPES = 0.1
"""Residual up to which shapes of curves may be read. Beyond, energies, H and rank show the optimiser: no verdict."""

COLLAPSED = 1e-3
"""A network has collapsed where what its weights add to the end state varies over the inputs by less than this part of
the inputs' own variation. Networks that fit lie above 0.1, collapsed ones at rounding."""

RANK = 1e-2
"""Singular values below this part of the largest count as zero: interiors of trained networks have 4 against 1e-2
where the rank is sharp (arXiv:2405.17573 states no threshold)."""

RANK_ABOUT_MEAN = 0.2
"""The same about the mean, for the directions in which a plateau varies: coarser, since a drift is no direction."""

MARGIN = 1.5
"""By which factor the threshold about the mean may move, both ways, without another count: else there is a doubt."""

GAMMA0 = 1e-3
"""γ₀ of the stable norms, relative to ``‖K‖_op`` (E7)."""

PLATEAU_STATES, PLATEAU_LENGTH = 3, 0.15
"""A bottleneck, where the count about the mean stays the same, must span this many states and this length of p: fewer
may be chance."""

INTERVAL_SLACK = 0.05
"""By how much an integer may lie outside the interval between −2H/L̃ and the least stable cost of identity: both are
limits (E11), and at finite L̃ and L the nearer end of certified networks misses k* by up to this."""

UNFITTED = 0.05
"""A training cost beyond this part of the zero network's is a doubt about k*: a direction that was given up is not
counted. Teachers of three directions, of which the network kept two, leave 10 %; those that were kept, 2 %."""

TIMESCALES = 3.0
"""Least L̃ at which jumps and drift are told apart: a jump takes 1/L̃ of p at each end."""

OVERFIT = 3.0
"""A test cost this many times the training cost is a doubt: the network then fits rows rather than the teacher."""

FITTED = 0.02
"""Training costs below this part of the zero network's count as this part there: ratios of costs near 0 say nothing."""

IDLE = 0.1
"""A layer of any network that changes its state by less than this part of it is called idle."""

FLAT = 1e-4
"""A least eigenvalue of the Hessian within this of 0, in units of μ, counts as 0. At residuals of 1e-9 those that are 0
by a symmetry come out at 1e-10."""

NEAR = 1e-3
"""Residual up to which the step to the critical point nearby, of Newton's method, tells the optimiser's error within a
factor of 2 (tests/core/test_kind.py)."""

BRANCH_START = 1e-2
"""Residual up to which a network is taken as the start of a branch: Newton's method brings it to a critical point near.
Beyond, it may lead anywhere, and the branch would begin at chance."""

ALIKE = 0.9
"""Layers of one network whose debiased CKA is at least this, all of them in pairs, are called one group."""
