"""What this package raises on purpose. Every message is one line: what, where, what to do."""


class Error(RuntimeError):
    """Root of all of them."""


class ConfigError(Error, ValueError):
    """The caller asked for something that cannot be: unknown name, wrong shape, impossible size.

    Where a call raises it before anything was sent, the Comm stays usable.
    """


class ModelError(Error):
    """A checkpoint file is missing, damaged, or not what its config says."""


class TransportError(Error):
    """A rank is gone, late or has given up. The Comm can only be closed afterwards.

    kind: 'timeout', 'peer_died', 'aborted' or 'io'.
    peer: the rank that the error is about; -1 where none is known.
    """

    kind = "io"
    peer = -1


class BrokenContract(Error):
    """Calls out of order, or a defect of ours."""


class StaleRows(BrokenContract):
    """Rows of an exchange were used after combine_send()."""


class Refused(Error):
    """An engine does not serve this call now; reason: 'full', 'busy', 'closing' or 'ended'."""

    reason = "ended"
