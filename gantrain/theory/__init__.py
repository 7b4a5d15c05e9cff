"""The theory of averaging: SGD as an Ornstein-Uhlenbeck process in closed form, and fits of it to the path of real weights."""

from __future__ import annotations
