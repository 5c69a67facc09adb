"""Every error that pruneaug raises on purpose.

PruneaugError                    exit 1
├── InputError                   exit 2   mend the spec, the data or the command, then run again
│   ├── SpecError                         a YAML file or a --set
│   ├── PluginError                       a name that is no plug-in, or one that does not import
│   ├── TaskError                         the model or the data
│   ├── NetworkError                      a layer that cannot be pruned as asked
│   ├── LatencyTableError                 a table that is missing, of another platform, or without the asked value
│   ├── CheckpointError                   a checkpoint folder that is not whole
│   └── RunError                          a run folder that belongs to another job or is in use
├── InfeasibleError              exit 3   finished, and nothing met the constraint
├── TrainingError                exit 1   a loss or a metric that is not finite; lower the learning rate
├── MeasurementError             exit 1   a kernel that crashed, hung or computed something else; run again
│   └── DeviceError                       a remote device or a GPU that is not there, is busy or is another; mend it
├── StorageError                 exit 1   a disk that is full or read-only; make room, run again
└── CompileError                 exit 1   a network or kernel that pruneaug could not compile; report it

A message names the rule, the value and the way out.
"""


class PruneaugError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class InputError(PruneaugError):
    """What the user gave is wrong; the message says what to change."""

    exit_code = 2


class SpecError(InputError):
    """A spec file or an override is wrong; the message carries file and line."""


class PluginError(InputError):
    """A plug-in's name is unknown, or its module does not import."""


class TaskError(InputError):
    """The model or the data is missing, corrupt or of the wrong shape."""


class NetworkError(InputError):
    """A layer is unknown or cannot be pruned as asked."""


class LatencyTableError(InputError):
    """The latency table is missing, broken, of another platform, or lacks a value."""


class CheckpointError(InputError):
    """A checkpoint folder is incomplete or contradicts itself."""


class RunError(InputError):
    """A run folder belongs to another job or is in use."""


class InfeasibleError(PruneaugError):
    """The search finished and no trial met the constraint; dense is the answer."""

    exit_code = 3


class TrainingError(PruneaugError):
    """A loss or metric is not finite."""


class MeasurementError(PruneaugError):
    """A measurement crashed, hung or gave a wrong result."""


class DeviceError(MeasurementError):
    """A remote device cannot be reached, is in use, is another one, or lacks what measuring needs."""


class StorageError(PruneaugError):
    """The disk is full or cannot be written."""


class CompileError(PruneaugError):
    """A network or kernel could not be compiled."""
