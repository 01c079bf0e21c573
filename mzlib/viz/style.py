"""The house style of figures."""

import html

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

OKABE_ITO = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")  # Okabe, Ito 2008


def use_style() -> None:
    """Set matplotlib to the house style: a colour-blind palette, readable sizes, no frame on top and right."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=OKABE_ITO),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e5e5e5",
            "figure.dpi": 90,
            "figure.constrained_layout.use": True,
            "font.size": 11,
            "legend.frameon": False,
            "image.interpolation": "nearest",
        }
    )


def show(figure: Figure, alt: str) -> None:
    """Display a figure in the notebook as a palette PNG with alternative text, and close it."""
    import numpy as np
    from IPython.display import Image, display

    from mzlib.viz.clips import png_bytes

    figure.canvas.draw()
    picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    plt.close(figure)
    display(Image(png_bytes(picture), alt=html.escape(alt, quote=True)))
