"""Events without streams: everything has happened when a call returns."""


class EventHandle:
    def current_stream_wait(self):
        """Nothing is left to wait for."""


class EventOverlap:
    """What a call hands over with async_finish. A context as well, as DeepEP's."""

    def __init__(self, event=None, extra_tensors=None):
        self.event = event
        self.extra_tensors = extra_tensors
        self._after_wait = None

    def register_hook_after_wait(self, hook):
        self._after_wait = hook

    def current_stream_wait(self, release_handle=False):
        hook, self._after_wait = self._after_wait, None
        if hook is not None:
            hook()
        if release_handle:
            self.event = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.current_stream_wait()
