package cbt

import "errors"

// ErrInterrupted marks a stream that broke for a transient reason and may be
// resumed from the last offset.
var ErrInterrupted = errors.New("block metadata stream interrupted")

// ErrUnavailable marks a storage that offers no changed-block tracking at all:
// no SnapshotMetadata service for the driver, or the call is not implemented.
var ErrUnavailable = errors.New("changed-block tracking is not available")
