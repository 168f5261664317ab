"""The errors that several rooms share."""

from __future__ import annotations

import errno

_OUT_OF_PLACE = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS}
_DEVICE_LIBRARIES = ("CUDA error", "CUDA driver error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS", "CUFFT_STATUS")
_OUT_OF_MEMORY = ("out of memory", "ALLOC_FAILED")


class UserError(Exception):
    """A fault that the user can mend: in the arguments, the input or the environment, or another run is active.

    The message names the fault and the next step. The command ends with exit code 2.
    """


class OutputError(UserError):
    """The output cannot take the rows of this run."""


class EnvironmentFault(Exception):   # noqa: N818
    """Something that every image needs is broken: credentials, the disk, the GPU. No image is at fault.

    Raised anywhere in an actor it ends the run with exit code 1, and no row is written for the images in hand. The
    message names the fault and the next step.
    """

    @classmethod
    def of(cls, error: Exception) -> EnvironmentFault | None:
        """The fault that an error stands for: itself, or a full disk or too many open files; None for all others."""
        if isinstance(error, cls):
            return error
        if isinstance(error, OSError) and error.errno in _OUT_OF_PLACE:
            return cls(f"{error}: free space, or set TMPDIR to another disk, or raise `ulimit -n`")
        return None


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class; at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def is_damage(error: Exception) -> bool:
    """Whether an error in reading a file says that its content is damaged, or that it is gone.

    pyarrow raises an OSError for that; those of disks and stores have a number.
    """
    return not isinstance(error, OSError) or isinstance(error, FileNotFoundError) or error.errno is None


def is_device_fault(error: Exception) -> bool:
    """Whether a GPU's libraries failed, and not for lack of memory.

    After such an error each further call in the process fails too. The libraries have no exception class for it.
    """
    return any(name in str(error) for name in _DEVICE_LIBRARIES) and not is_out_of_memory(error)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's memory was too small. Operators of torchvision and torchcodec raise a RuntimeError then."""
    return any(why in str(error) for why in _OUT_OF_MEMORY)
