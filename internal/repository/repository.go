// Package repository is the vocabulary of the backup repository: what a volume
// image is, how it is written and read, and the catalog of the repo snapshots
// that make images findable.
//
// An image is the content of one volume at one instant. It is cut into chunks
// (of Meta.ChunkSize bytes, the last one padded with zeros), chunks are gathered
// into segments, segments into the image. An incremental image refers to the
// segments and chunks of its parent for everything it does not change. A chunk
// that changes in part is kept in pages (of Meta.PageSize) from then on, so that
// the next change of it costs the pages that it touches; a chunk that is put as a
// whole is one piece again.
//
// A repo snapshot is the manifest that names an image, with the Meta document
// beside it (volume.json). An image is visible only when its repo snapshot is
// saved; a crash before leaves the repository as it was.
//
// The package is pure: adapters live below it.
package repository

import (
	"context"
	"errors"
	"io"
	"strings"
	"time"

	"github.com/blockmover/blockmover/internal/block"
)

// ErrNotFound is wrapped by every error that says that a repo snapshot, or
// something that it refers to, is not in the repository.
var ErrNotFound = errors.New("not found in the repository")

// ErrCorrupt is wrapped by every error that says that what the repository holds
// is not what its format promises.
var ErrCorrupt = errors.New("repository content is damaged")

// How an image is cut unless its Meta says otherwise; see Meta.WithDefaults.
const (
	// smallVolume has the smallest chunks and pages.
	smallVolume = 16 << 30

	minChunkSize = 64 << 10
	maxChunkSize = 1 << 20
	minPageSize  = 8 << 10
	maxPageSize  = 16 << 10

	// segmentChunks is how many chunks a segment has: 9 KiB of index to rewrite, so
	// that one changed chunk in each of 100 segments is less than 1 MiB of metadata.
	// It makes 128 MiB at most, which is what a stock reader of the repository
	// buffers.
	segmentChunks = 128
)

// DefaultChunkSize is the chunk size for a volume of size bytes: 64 KiB up to
// 16 GiB, and twice that for each four times as much, up to 1 MiB for more than
// 1 TiB.
//
// The first change of a chunk costs all of it: 4 KiB here and there upload 256
// times as much with chunks of 1 MiB, 16 times with 64 KiB. Small chunks cost
// index: 75 bytes each in the image, and some 40 in the repository's own index,
// which a restore has in memory; no CPU time that could be measured. So volumes of
// the size of a database have small ones, and those of terabytes a number of chunks
// that can still be handled: 2 million for 1 TiB.
func DefaultChunkSize(size int64) int64 {
	chunk := int64(minChunkSize)
	for limit := int64(smallVolume); chunk < maxChunkSize && size > limit; limit *= 4 {
		chunk *= 2
	}
	return chunk
}

// DefaultPageSize is the page size for a volume of size bytes: 8 KiB up to 16
// GiB, then 16 KiB. A database that writes 4 KiB here and there uploads two or four
// times that. Smaller pages cost more in the index (75 bytes each) than they save.
func DefaultPageSize(size int64) int64 {
	if size <= smallVolume {
		return minPageSize
	}
	return maxPageSize
}

// DefaultCheckpointInterval loses 20 seconds by a kill, at 200 MB/s. The few
// requests of a checkpoint are nothing beside the packs of 4 GiB.
const DefaultCheckpointInterval = 4 << 30

// MaxInFlight is how many bytes of the volume may be read or put, at most, beyond the chunk
// that VolumeWriter.Advance was last called with. A checkpoint does not record them.
const MaxInFlight = 128 << 20

// MinCheckpointInterval is one segment that is recorded, one that is written, and what is
// in flight.
const MinCheckpointInterval = 2*segmentChunks*maxChunkSize + MaxInFlight

// TagOperation is the tag of a repo snapshot that holds the operation ID: a
// repeated operation finds by it what it saved before.
const TagOperation = "blockmover.io/operation-id"

// TagReason is the tag of a repo snapshot with the chain.Reason of its kind; it is
// missing where there is none.
const TagReason = "blockmover.io/reason"

// SnapshotID identifies a repo snapshot: it is what DataUpload.status.snapshotID
// holds.
type SnapshotID string

// VolumeKey names a volume the way a user does. A PVC that was deleted and
// created again under its name has the same key and another
// Meta.VolumeHandle.
type VolumeKey struct {
	Namespace string
	PVC       string
}

// String formats the key as namespace/pvc.
func (k VolumeKey) String() string { return k.Namespace + "/" + k.PVC }

// Compare orders keys by namespace, then by PVC.
func (k VolumeKey) Compare(other VolumeKey) int {
	if c := strings.Compare(k.Namespace, other.Namespace); c != 0 {
		return c
	}
	return strings.Compare(k.PVC, other.PVC)
}

// Kind says how an image was made.
type Kind string

// The kinds of image.
const (
	Full        Kind = "Full"
	Incremental Kind = "Incremental"
)

// MetaVersion is the version of the volume.json document that this program
// writes. Documents of another version are refused.
const MetaVersion = 1

// Meta is the content of volume.json. Sizes are bytes.
type Meta struct {
	Version int `json:"version"`
	// Size is the exact size of the volume; disk.raw is padded to a multiple of
	// ChunkSize.
	Size        int64 `json:"size"`
	ChunkSize   int64 `json:"chunkSize"`
	SegmentSize int64 `json:"segmentSize"`
	// PageSize is the length of the pieces of a chunk that was changed in part.
	PageSize int64 `json:"pageSize"`
	Kind     Kind  `json:"kind"`
	// Parent is the repo snapshot that an incremental image is based on.
	Parent SnapshotID `json:"parent,omitempty"`
	// Driver, VolumeHandle and SnapshotHandle are CSI's names.
	Driver         string `json:"driver,omitempty"`
	VolumeHandle   string `json:"volumeHandle,omitempty"`
	SnapshotHandle string `json:"snapshotHandle,omitempty"`
	// ChangeID names this image's instant towards the storage: the base of the
	// next delta.
	ChangeID string `json:"changeID,omitempty"`
	// SnapshotTime is the instant of the VolumeSnapshot, not of the upload.
	SnapshotTime time.Time `json:"snapshotTime"`
	// Mover is the data mover type that wrote the image.
	Mover string `json:"mover"`
}

// WithDefaults fills in the sizes that are 0.
func (m Meta) WithDefaults() Meta {
	if m.ChunkSize == 0 {
		m.ChunkSize = DefaultChunkSize(m.Size)
	}
	if m.SegmentSize == 0 {
		m.SegmentSize = segmentChunks * m.ChunkSize
	}
	if m.PageSize == 0 {
		m.PageSize = min(DefaultPageSize(m.Size), m.ChunkSize)
	}
	return m
}

// Snapshot is one repo snapshot of a volume.
type Snapshot struct {
	ID     SnapshotID
	Volume VolumeKey
	Meta   Meta
	// Tags are the manifest's own, such as the operation ID.
	Tags map[string]string
	// Start and End of the upload.
	Start, End time.Time
	// Damage says why the image cannot be used; Meta is empty then. It is nil for
	// a healthy repo snapshot.
	Damage error
}

// FindOperation returns the repo snapshot that an operation saved, if it did.
func FindOperation(snapshots []Snapshot, operationID string) (Snapshot, bool) {
	for _, s := range snapshots {
		if operationID != "" && s.Tags[TagOperation] == operationID {
			return s, true
		}
	}
	return Snapshot{}, false
}

// Image is a written image that no repo snapshot names yet. Root is the
// adapter's own name of it.
type Image struct {
	Root string
	Meta Meta
}

// Pages is a run of pages of one chunk. Offset is relative to the chunk; it and
// the length of Data are multiples of Meta.PageSize.
type Pages struct {
	Offset int64
	Data   []byte
}

// WriteStats counts what a VolumeWriter did; what an earlier run of the
// operation has finished is not in it. All but the counts are bytes.
type WriteStats struct {
	// BytesUploaded were new to the repository, before compression and without
	// metadata and padding.
	BytesUploaded int64
	// MetadataBytes were written for segments and the root, before compression.
	MetadataBytes int64
	// ChunksWritten were put, the zero ones included; ChunksInherited came from the
	// parent.
	ChunksWritten   int64
	ChunksInherited int64
	// ZeroBytes were put and are zero.
	ZeroBytes int64
}

// Compression says how data is compressed. It does not change what the
// repository calls equal: images with and without share contents.
type Compression string

// The compressions. S2 is the default: of source files it leaves 38 %, where Zstd, at
// its fastest level, leaves 27 % and takes more than twice the CPU time. Both are left
// out for what a look at some places of it shows to be incompressible.
const (
	S2            Compression = "s2"
	Zstd          Compression = "zstd"
	NoCompression Compression = "none"

	DefaultCompression = S2
)

// Compressions are all that there are.
var Compressions = []Compression{S2, Zstd, NoCompression}

// WriterOptions say whose image is written, and from what.
type WriterOptions struct {
	// Volume and Operation are those that the image will be saved with.
	Volume    VolumeKey
	Operation string
	// Parent is the image to inherit from, or "" for a full one.
	Parent SnapshotID
	// Compression of the data; "" is DefaultCompression.
	Compression Compression
	// CheckpointInterval is how many bytes that were put a later run of the
	// operation may have to put again; 0 is DefaultCheckpointInterval. Less than
	// MinCheckpointInterval is no less for large volumes: it is whole segments that
	// are recorded, beside which others are being read.
	CheckpointInterval int64
}

// VolumeWriter writes one image. Put and PutPages may be called from many goroutines at
// once; each chunk at most once; a chunk that is not put is inherited from the
// parent, or is zero where there is no parent or the parent ends before it.
//
// From time to time, in Advance, a writer records what it has finished. A writer
// for the same operation, parent and Meta begins after it: see Resumed. Meta must
// have a SnapshotHandle, and may have another SnapshotTime: the handle alone says
// what the device holds.
//
// Every writer is closed. After Commit, or after any error, only Close may be called.
type VolumeWriter interface {
	// Meta is the image's, with what NewWriter has filled in.
	Meta() Meta
	// Resumed is the first chunk that may be put: an earlier run of the operation
	// has finished those before it. It is 0 where there was none.
	Resumed() int64
	// Put stores consecutive chunks from the given one on, which takes less time than
	// one by one. data is one or more times Meta.ChunkSize bytes, the tail of the
	// volume's last chunk padded with zeros. It must not change while Put runs, and
	// may be reused after Put returns.
	Put(ctx context.Context, chunk int64, data []byte) error
	// Paged reports whether PutPages takes any pages of a chunk: the parent has the
	// chunk in pages of the same size, or it is zero there. Else it takes all of them.
	Paged(ctx context.Context, chunk int64) (bool, error)
	// PutPages stores pages of one chunk, in ascending order, in place of Put. What
	// is not among them is inherited.
	PutPages(ctx context.Context, chunk int64, runs []Pages) error
	// Advance promises that no chunk below the given one is still to be put: the
	// Puts of all that come before it have returned. The writer then finishes what
	// it can, so that what it holds in memory does not grow with the volume.
	// Advance need not be called at all; it may run beside Puts of later chunks.
	Advance(ctx context.Context, chunk int64) error
	// Commit completes the image and makes it durable, without naming it.
	Commit(ctx context.Context) (Image, WriteStats, error)
	// Close ends a writer whose image is not committed. It does nothing after Commit,
	// nor when it is called again. It works for a context that is over.
	Close(ctx context.Context, how Ending) error
}

// Ending says what becomes of what a writer has recorded.
type Ending int

// The endings.
const (
	// Discard gives the image up. A later run of the operation starts anew.
	Discard Ending = iota
	// Suspend leaves what is recorded to a later run of the operation.
	Suspend
)

// VolumeReader reads one image. It is safe for concurrent use.
type VolumeReader interface {
	// ReaderAt reads the volume's bytes; at the exact size it returns io.EOF.
	io.ReaderAt
	Meta() Meta
	// IsZero reports whether the chunk is known to hold only zeros without
	// reading it.
	IsZero(ctx context.Context, chunk int64) (bool, error)
	// Matches reports whether the chunk holds exactly data, which is Meta.ChunkSize
	// bytes, the tail of the volume's last chunk padded with zeros. It compares
	// content IDs: what the image holds is not downloaded.
	Matches(ctx context.Context, chunk int64, data []byte) (bool, error)
	io.Closer
}

// Catalog is the set of repo snapshots, and the way to their images.
type Catalog interface {
	// Save names an image: from here on it is a backup, and the operation holds
	// nothing else. It takes Volume, Tags,
	// Start and End from s, and everything else from img. Idempotent: where a repo
	// snapshot of the same volume has the same TagOperation already, that one is
	// returned and nothing is written.
	Save(ctx context.Context, s Snapshot, img Image) (SnapshotID, error)
	// Get returns one repo snapshot; its error wraps ErrNotFound.
	Get(ctx context.Context, id SnapshotID) (Snapshot, error)
	// List returns the repo snapshots of a volume, newest SnapshotTime first. One
	// whose documents cannot be read is listed with its Damage, after all others.
	List(ctx context.Context, volume VolumeKey) ([]Snapshot, error)
	// Volumes returns the volumes that have repo snapshots, by namespace and PVC.
	Volumes(ctx context.Context) ([]VolumeKey, error)
	// Delete forgets a repo snapshot; one that is gone already is no error.
	Delete(ctx context.Context, id SnapshotID) error
}

// Store is an open repository.
type Store interface {
	Catalog
	// NewWriter starts an image. What the image inherits is in use until the image is
	// saved or discarded: deleting the parent does not take it away. A ChunkSize or
	// SegmentSize of 0 in meta means the parent's, or the default; another one than the
	// parent's is an error. A PageSize of 0 means the default, or the chunk size where
	// that is less. The writer sets Version, Kind and Parent in meta. The error wraps
	// ErrNotFound or ErrCorrupt when the parent, or something that it consists of, is
	// not there or not whole.
	//
	// Where the size differs from the parent's, the chunk that holds the smaller of
	// both ends must be put unless that end is the end of a chunk.
	NewWriter(ctx context.Context, meta Meta, o WriterOptions) (VolumeWriter, error)
	// OpenReader opens the image of a repo snapshot. Reads use its context.
	OpenReader(ctx context.Context, id SnapshotID) (VolumeReader, error)
	// Compare emits the ranges in which two images may differ, without reading what
	// they hold: in ascending order, apart from each other, and up to the end of the
	// smaller volume. All else is equal. What one image has inherited from the other
	// is found equal, and so is a chunk with the same content where it is cut the same
	// way. An error of emit ends it and is returned.
	Compare(ctx context.Context, a, b SnapshotID, emit func(block.Extent) error) error
	Close(ctx context.Context) error
}
