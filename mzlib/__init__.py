"""mzlib: the package under the Montezuma workbook's notebooks.

Notation, the same in every signature, docstring and notebook:

    b        batch                               t       time: environment steps, four raw frames each
    d        width of a layer                    h       attention heads
    n        environments or workers side by side
    o a r    observation, action, reward         e       residual stream at the controlled layer, (b, t, n_e)
    n_e      width of that residual stream       l       the controlled layer: e is read after block l
    s        embedding of the whole sequence     n_s     its width
    h_t      history, GRU state over e_1..e_t    n_h     its width
    z        code (b, t, n_z)                    z̃       code as proposed, drawn from N(μ, Σ)
    n_z      width of the code                   β       switch in [0, 1]: z_t = β_t z̃_t + (1 − β_t) z_{t−1}
    U        controller: ê_t = e_t + U_t e_t     r       its rank, U = A B
    θ φ      frozen backbone, metacontroller     α       weight of KL(N(μ, Σ) ‖ N(0, I)) in the loss
    γ λ      discount, GAE's decay

Go-Explore's words:

    cell     what a situation is reduced to; two situations in the same cell count as the same place
    seen     how often exploration has come through a cell; a cell is picked with weight 1/√(seen + 1)
    archive  for every cell, the best way there so far: score, length, actions, emulator state
    demo     a list of actions from a fresh start, proved by replaying it

Lengths named `steps` are environment steps; `frames` are raw emulator frames. Arrays are written with their shape:
(t, 84, 84) uint8.
"""

__version__ = "0.1.0"
