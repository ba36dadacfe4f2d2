"""The command `isthmus certify`: a saved network checked afresh, in float64."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isthmus.cli.failures import DONE, exit_codes
from isthmus.thresholds import CRITICAL, SHAPES

if TYPE_CHECKING:
    from isthmus.certificate import Certificate
    from isthmus.runs.saved import Saved


def certify(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN|FILE", help="The folder of a run, or the model.safetensors of one."),
    ],
    kink_width: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="NUMBER",
            help="ReLU: states within this times the root mean square of their layer count as kinks (default: 0.001; "
            "0 leaves the search out).",
            show_default=False,
        ),
    ] = 1e-3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with the values of every layer.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors (also by ISTHMUS_DEBUG=1).")
    ] = False,
) -> None:
    """Check how critical a run's network is, and whether a minimum or a saddle.

    Weights, path and momenta are computed anew in float64, and nothing is taken from the run's tables.

    What is checked is model.safetensors, the file to share: that it is sound, and the same as the checkpoint beside it.
    Nothing is trained or written. The exit code says whether it could be checked, not whether it converged.
    """
    with exit_codes(debug):
        from isthmus.certificate import certify as check
        from isthmus.certificate import kind_of
        from isthmus.runs.build import restore_problem
        from isthmus.runs.saved import read_saved

        saved = read_saved(run)
        problem = restore_problem(saved)
        evaluation = problem.evaluate(gradient=False)
        certificate = check(problem.geodesic(), kink_width, kind=kind_of(problem))
        if as_json:
            about = {"run": str(run), "file": str(saved.file), "step": saved.step}
            about |= {"objective": evaluation.objective, "data_cost": evaluation.data_cost}
            print(json.dumps(about | certificate.to_dict(), indent=1, allow_nan=False))
            raise typer.Exit(DONE)
        lines = [("objective", evaluation.objective, f"data cost {evaluation.data_cost:.6g}"), *_lines(certificate)]
        print(f"{saved.file}, step {saved.step}: checked in float64")
        for label, value, detail in lines:
            print(f"  {label:<24}{value:>12.6g}  {detail}".rstrip())
        print(_verdict(certificate, saved))
        if certificate.kind is not None and (certificate.converged or certificate.kind.kind != "undecided"):
            print(f"{certificate.kind.kind.capitalize()}: {certificate.kind.reason}.")


def _lines(c: "Certificate") -> list[tuple[str, float, str]]:
    """Label, value and meaning of every number."""
    layer = int(c.residual.argmax()) + 1
    lines = [
        ("residual, largest", c.residual_max, f"of the stationarity residual; at layer {layer}"),
        ("residual, median", c.residual_median, ""),
    ]
    if c.kink_residual is not None:
        at = f"the largest with the best derivatives at the {c.kinks} states at ReLU's kinks (width {c.kink_width:g})"
        lines.append(("residual up to kinks", c.kink_residual, at))
    lines += [
        ("gradient norm", c.gradient_norm, "of the objective in the variables sqrt(rho) W"),
        ("duality gap", c.duality_gap, "of penalty and data cost under scaling of the weights"),
    ]
    if c.kind is not None and math.isfinite(c.kind.least):
        of = "of the Hessian, over mu"
        lines.append(("least eigenvalue", c.kind.least, f"{of}; one lies within {c.kind.error:.2g} of it"))
    if len(c.hamiltonian):
        lines += [
            ("-2H/L, median", float(c.hamiltonian.quantile(0.5)), "staggered"),
            ("-2H/L, max - min", c.h_spread, "over layers"),
            ("  predicted", c.h_predicted, "by the layers' own O(rho) error, at a critical point"),
            ("  unexplained", c.h_unexplained, "max - min without it: O(rho^2) at a critical point"),
            ("  unexplained, order 3", c.h_modified_spread, "max - min with one term more: O(rho^3)"),
        ]
    return lines


def _verdict(c: "Certificate", saved: "Saved") -> str:
    if c.collapsed:
        minimum = c.kind is None or c.kind.kind != "saddle"
        tail = ", and the zero network is a local minimum" if minimum else ""
        return f"Collapsed: the outputs hardly depend on the inputs{tail}."
    if c.residual_max <= CRITICAL:
        return "A critical point: every layer's residual is at most 1e-4."
    if c.converged:
        return "A critical point up to the choice of derivatives at ReLU's kinks: the residual there is at most 1e-3."
    if c.residual_max <= SHAPES:
        return "Near a critical point: read the shapes of energies and H, not their digits."
    further = _further(saved, "geodesic" if c.kink_residual is None else "kinks")
    return f"No critical point: energies and H show the optimiser. Try `{further}`."


def _further(saved: "Saved", solver: str) -> str:
    from isthmus.runs.advice import further
    from isthmus.solve import recipe

    train = saved.config.train
    return further(
        train.model_dump(), saved.place, solver, lambda: recipe(solver, train.steps)[-1].steps, alone=saved.alone
    )
