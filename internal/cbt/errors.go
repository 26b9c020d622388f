package cbt

import "errors"

// ErrInterrupted marks a stream that broke for a transient reason. It may be resumed from the
// last offset.
var ErrInterrupted = errors.New("block metadata stream interrupted")

// ErrUnavailable marks a storage without changed-block tracking: the driver has no
// SnapshotMetadata service, or the call is not implemented.
var ErrUnavailable = errors.New("changed-block tracking is not available")
