"""Figures, room maps, clips and widgets: what the notebooks show."""
