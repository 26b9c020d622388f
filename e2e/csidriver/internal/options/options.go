// Package options reads the file that tells the driver how to misbehave.
//
// The file is strict JSON. An unknown key or a bad value makes every call of the driver fail,
// so that a test with a spelling mistake does not pass. The file is read again at each call.
// A missing file, and each missing key, means the value in Defaults.
package options

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Options is the content of the file.
type Options struct {
	// BlockType is the style of changed and allocated blocks: "FIXED" (default) or "VARIABLE".
	BlockType string `json:"blockType"`
	// BlockSize is their granularity in bytes: a power of two from 512 to 64 MiB, default 64 KiB.
	BlockSize int64 `json:"blockSize"`
	// RequireBaseSnapshotForDelta (default true) means that a deleted base is NotFound. If it
	// is false, snapshots that are deleted from then on still serve as a base.
	RequireBaseSnapshotForDelta bool `json:"requireBaseSnapshotForDelta"`
	// BreakStreamAfterMessages ends each metadata stream with Unavailable after that many
	// messages. Zero never does.
	BreakStreamAfterMessages int `json:"breakStreamAfterMessages"`
	// RefuseDelta and RefuseAllocated make these calls fail with FailedPrecondition.
	RefuseDelta     bool `json:"refuseDelta"`
	RefuseAllocated bool `json:"refuseAllocated"`
	// OmitChangedBlocks leaves changed blocks out of each delta. Below one it is the fraction
	// of the blocks, chosen by their offset. From one on it is the number of blocks at the
	// beginning of the volume.
	OmitChangedBlocks float64 `json:"omitChangedBlocks"`
	// OverrunTail gives the last FIXED block its full size although the volume ends before.
	// Otherwise the block ends with the volume and is shorter than the others. The
	// specification demands one size and does not mention the end.
	OverrunTail bool `json:"overrunTail"`
	// WrongBlocks makes each metadata stream break one rule of the specification.
	WrongBlocks WrongBlocks `json:"wrongBlocks"`
	// SnapshotDelay is how long a new snapshot is not ready to use.
	SnapshotDelay Duration `json:"snapshotDelay"`
	// CreateSnapshotError and GroupSnapshotError make new snapshots and groups fail with this
	// message. The code is Internal, or the one at the beginning of the message, such as
	// "RESOURCE_EXHAUSTED: no space".
	CreateSnapshotError string `json:"createSnapshotError"`
	GroupSnapshotError  string `json:"groupSnapshotError"`
	// MaxSnapshotsPerVolume makes a snapshot beyond that number fail with ResourceExhausted.
	// Zero is no limit.
	MaxSnapshotsPerVolume int `json:"maxSnapshotsPerVolume"`
	// OmitRestoreSize reports snapshots without a size.
	OmitRestoreSize bool `json:"omitRestoreSize"`
	// RefuseMemberDelete refuses to delete the snapshots of a group one by one. Drivers may
	// do so if a group is one object in the storage.
	RefuseMemberDelete bool `json:"refuseMemberDelete"`
	// ShrinkTo shrinks the volumes with these handles to a size in bytes before the next
	// call, like a storage that replaces the volume by a smaller one. A volume that is not
	// larger stays as it is.
	ShrinkTo map[string]int64 `json:"shrinkTo"`
}

// Defaults is the behaviour of a driver that is as strict as the specification allows.
func Defaults() Options {
	return Options{BlockType: Fixed, BlockSize: 64 << 10, RequireBaseSnapshotForDelta: true, RefuseMemberDelete: true}
}

// The block types.
const (
	Fixed    = "FIXED"
	Variable = "VARIABLE"
)

// WrongBlocks names a broken rule.
type WrongBlocks string

// The rules that can be broken.
const (
	Right         WrongBlocks = ""              // none
	Overlap       WrongBlocks = "overlap"       // the first message comes twice
	Descending    WrongBlocks = "descending"    // the blocks of each message run backwards
	Beyond        WrongBlocks = "beyond"        // one block more follows, beyond the end of the volume
	Empty         WrongBlocks = "empty"         // the first block has no bytes
	WrongCapacity WrongBlocks = "wrongCapacity" // the capacity is twice the true one
	WrongType     WrongBlocks = "wrongType"     // the type is UNKNOWN
)

var wrongBlocks = []WrongBlocks{Right, Overlap, Descending, Beyond, Empty, WrongCapacity, WrongType}

// Duration is a time.Duration written like "1m30s".
type Duration time.Duration

// UnmarshalText parses a duration.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	*d = Duration(parsed)
	return err
}

const (
	minBlockSize = 512
	maxBlockSize = 64 << 20
)

// Load reads and checks the file.
func Load(path string) (Options, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Defaults(), nil
	}
	if err != nil {
		return Options{}, fmt.Errorf("read driver options: %w", err)
	}
	loaded, err := parse(content)
	if err != nil {
		return Options{}, fmt.Errorf("parse driver options %s: %w", path, err)
	}
	return loaded, nil
}

func parse(content []byte) (Options, error) {
	parsed := Defaults()
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&parsed); err != nil {
		return Options{}, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Options{}, errors.New("more than one JSON value")
	}
	return parsed, parsed.check()
}

// check refuses values that have no meaning.
func (o Options) check() error {
	switch {
	case o.BlockType != Fixed && o.BlockType != Variable:
		return fmt.Errorf("blockType %q is neither %s nor %s", o.BlockType, Fixed, Variable)
	case o.BlockSize < minBlockSize || o.BlockSize > maxBlockSize || o.BlockSize&(o.BlockSize-1) != 0:
		return fmt.Errorf("blockSize %d is no power of two from %d to %d", o.BlockSize, minBlockSize, maxBlockSize)
	case o.BreakStreamAfterMessages < 0:
		return fmt.Errorf("breakStreamAfterMessages %d is negative", o.BreakStreamAfterMessages)
	case o.OmitChangedBlocks < 0:
		return fmt.Errorf("omitChangedBlocks %g is negative", o.OmitChangedBlocks)
	case o.OmitChangedBlocks > 1 && o.OmitChangedBlocks != float64(int64(o.OmitChangedBlocks)):
		return fmt.Errorf("omitChangedBlocks %g is neither a fraction nor a count", o.OmitChangedBlocks)
	case !slices.Contains(wrongBlocks, o.WrongBlocks):
		return fmt.Errorf("wrongBlocks %q is none of %q", o.WrongBlocks, wrongBlocks)
	case o.SnapshotDelay < 0:
		return fmt.Errorf("snapshotDelay %s is negative", time.Duration(o.SnapshotDelay))
	case o.MaxSnapshotsPerVolume < 0:
		return fmt.Errorf("maxSnapshotsPerVolume %d is negative", o.MaxSnapshotsPerVolume)
	}
	for handle, size := range o.ShrinkTo {
		if size <= 0 {
			return fmt.Errorf("shrinkTo of %s is %d, not a size", handle, size)
		}
	}
	return nil
}
