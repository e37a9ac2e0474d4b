"""What DeepEP's callers import from deep_ep.utils."""

from .event import EventHandle, EventOverlap

__all__ = ["EventHandle", "EventOverlap"]
