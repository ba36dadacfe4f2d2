"""Runge–Kutta schemes for Hamilton's equations (E9) with an end condition at each end of p.

A step of size h with stages ``X_i = A_n + h Σ_j a_ij F_j``, ``F_i = −L̃X_i + W_i σ(X_i)`` has the penalty
``(μ/2) h Σ_i b_i ‖W_i‖²``. Where the weights ``W_i`` minimise the discrete objective, its backward sweep is itself a
Runge–Kutta scheme. Both together form a symplectic partitioned pair for (E9) (Hager 2000, "Runge-Kutta methods in
optimal control and the transformed adjoint system"). The pair has the order of the forward scheme for order 2 and for
explicit order 4 with four stages, as long as every ``b_i > 0`` (Hager, Propositions 5.1 and 6.1). Euler's scheme
gives (E2) itself: an L-layer Leaky ResNet is the first-order member of the family.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scheme:
    """An explicit Runge–Kutta tableau.

    Args:
        name: for messages and tables.
        order: of the scheme, and of the solution of (E9) at the nodes.
        a: strictly lower triangular, a row a stage.
        b: weights, positive, summing to 1.
        c: abscissae of the stages within a step.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]

    @property
    def stages(self) -> int:
        """Weight matrices a step."""
        return len(self.b)


EULER = Scheme("Euler", 1, ((),), (1.0,), (0.0,))
HEUN = Scheme("Heun", 2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0))
RK4 = Scheme("RK4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0))
SCHEMES = {scheme.order: scheme for scheme in (EULER, HEUN, RK4)}


def scheme_of_order(order: int) -> Scheme:
    """The scheme of an order: 1 (Euler), 2 (Heun) or 4 (RK4).

    Raises:
        ValueError: another order.
    """
    if order not in SCHEMES:
        raise ValueError(f"order must be one of {', '.join(map(str, SCHEMES))}, got {order!r}")
    return SCHEMES[order]
