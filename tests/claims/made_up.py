"""Made-up studies: one on which every claim is true, and one on which every claim is false."""

from dataclasses import replace

from isthmus.claims.plan import branch_job, mesh_job, minima_job, trained_job, ways_job
from isthmus.claims.sizes import SMALL
from isthmus.claims.study import Study

SIZE = replace(SMALL, leaks=(4.0, 6.0, 8.0, 10.0), shown=8.0, mesh_depths=(6, 12, 18))
LAYERS = 10


def network(leak, true, seed, *, mu=SIZE.mu, certified=True, test_cost=1.0):
    """A network whose numbers are as the paper has them, or all the other way round."""
    k, t = SIZE.dims[1], (leak - SIZE.leaks[0]) / (SIZE.leaks[-1] - SIZE.leaks[0])
    small = 1e-3 * (seed + 1)
    low = k - 1.5 + 1.4 * t - small if true else k + 1.3 - 0.3 * t + small
    high = k + 1 - 0.9 * t + small if true else k - 1 + 0.5 * t - small
    p = [(i + 1) / LAYERS for i in range(LAYERS)]
    fast = [5.0 if i in ((0, LAYERS - 1) if true else (LAYERS // 2,)) else 0.1 for i in range(LAYERS)]
    potential = [-3.0 - 5 * (i % 2) for i in range(LAYERS)]
    kinetic = [1 - v if true else -3 * v for v in potential]
    spread = small if true else 1.0 + small
    h = [low + spread * (-1) ** i for i in range(LAYERS)]
    part = small if true else 0.5 + small
    growth = 1 + 0.1 * t + small if true else 1 + 3 * t + small
    bound = {"gamma0": 1e-3, "gamma": 0.1, "length": 3.0, "speed_share": 1.0 if true else 0.4}
    bound |= {"value": -0.1, "lower": -0.3, "upper": 0.3} if true else {"value": 9.0, "lower": -5.0, "upper": 5.0}
    bound |= (
        {"pointwise_lower": -0.2, "pointwise_upper": 0.2} if true else {"pointwise_lower": -5.0, "pointwise_upper": 5.0}
    )
    k_star = (k if true else k + 1 + round(3 * t)) if certified else k
    return {
        "values": {
            "effective_depth": leak,
            "mu": mu,
            "residual_max": 1e-6 * (seed + 1) if true else 0.3 + small,
            "certified": certified,
            "collapsed": False,
            "minus_2h_over_l": low,
            "coi_least": high,
            "k_star": k_star,
            "rank": k_star,
            "trusted": True,
            "path_length": 10 * growth,
            "norm_b_max": 5 * growth,
            "norm_b_features_max": 4 * growth,
            "rows_of_momentum": 0.2 + small if true else 0.9 + small,
            "test_cost": test_cost,
        },
        "layers": {
            "p": p,
            "rho": [1 / LAYERS] * LAYERS,
            "kinetic_stable": kinetic,
            "potential_stable": potential,
            "cross_stable": [part * 4 if true else 40.0] * LAYERS,
            "kinetic_stable_off_image": [part] * LAYERS,
            "potential_stable_off_image": [part] * LAYERS,
            "cross_stable_off_image": [part] * LAYERS,
            "hamiltonian": [-leak / 2 * v for v in h],
            "minus_2h_over_l": h,
            "minus_2h_over_l_stable": h,
            "minus_2h_over_l_order2": h,
            "minus_2h_over_l_order3": [None, *h[1:]],
            "residual": [1e-6] * LAYERS,
            "balancedness_defect": [0.0, *[-part] * (LAYERS - 1)],
            "speed_k": fast,
            "step_change": [1.0 + small] * LAYERS if true else [1.0 + i for i in range(LAYERS)],
            "norm_b_features": [1.0] * LAYERS,
            "norm_w": [1.0] * LAYERS,
        },
        "states": {
            "coi": [high + 1] * (LAYERS + 1),
            "coi_stable": [high + 1] * (LAYERS + 1),
            "rank_a": [k_star] * (LAYERS + 1),
            "norm_a": [1.0] * (LAYERS + 1),
            "norm_b": [1.0] * (LAYERS + 1),
            "negative_share": [0.5, *[part] * LAYERS],
        },
        "bounds": [bound, bound | {"gamma0": None, "length": 3.0 * growth}],
        "spectra_a": [[1.0, 0.5, 0.2, 1e-4 if 0 < i < LAYERS else 0.1] for i in range(LAYERS + 1)],
        "spectra_w": [[1.0, 0.5, 0.2, 1e-4 if 0 < i < LAYERS else 0.3] for i in range(LAYERS)],
    }


def study(of, seeds=10, *, size=SIZE, without=(), uncertified=()):
    """A whole study; ``without`` seeds have no results, ``uncertified`` ones no certified points.

    ``of`` is whether claims are true: of all seeds, or a function of the seed.
    """
    results = {}
    for seed in range(seeds):
        if seed in without:
            continue
        true = of(seed) if callable(of) else of
        good = seed not in uncertified
        for leak in size.leaks:
            # by the recipe, networks are no critical points, whatever the paper says of the rest
            job = trained_job(size, seed, leak)
            results[job.key] = network(leak, true, seed, certified=False)
        against = {"minima": 5, "open": 0, "negative": 0, "off_rank": 0, "against": 0 if true else 2, "ranks": [1]}
        results[minima_job(size, seed).key] = against
        falls = 1 if true else -1
        points = [network(size.leaks[0], true, seed, mu=mu, certified=good) for mu in size.decays]
        for i, point in enumerate(points):
            point["values"]["minus_2h_over_l"] = 1 - falls * 0.5 * i - 1e-3 * seed
        events = [{"kind": "jump", "value": 5.0, "message": ""}] * (2 if true else 0)
        results[branch_job(size, seed).key] = {
            "mu": {"points": points, "all": [], "events": [], "status": "converged"},
            "effective_depth": {
                "points": [network(leak, true, seed, certified=good) for leak in size.leaks],
                "all": [],
                "events": events,
                "status": "converged",
            },
        }
        for i, depth in enumerate(size.mesh_depths):
            for rule in ("equidistant", "irregular", "adaptive"):
                gain = 0.0 if rule == "equidistant" else 0.2 if true else -0.2
                cost = (1 - gain) * (1 + 0.01 * seed) * (1 - 0.01 * i)
                results[mesh_job(size, seed, depth, rule).key] = network(
                    3.0, true, seed, certified=False, test_cost=cost
                )
    if 0 not in without:
        ways = {
            rule: network(3.0, True, 0, certified=False) | {"way": [[0.0, 1.0, 2.0], [0.0, 0.5, 0.0]]}
            for rule in ("equidistant", "irregular", "adaptive")
        }
        results[ways_job(size, 0).key] = ways | {"kept": {"share": 0.9}}
    return Study(size, seeds, results)
