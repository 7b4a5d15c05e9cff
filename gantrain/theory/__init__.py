"""The theory of weight averaging: SGD as an Ornstein-Uhlenbeck process in closed form, and fits of it to recorded weights."""

from __future__ import annotations
