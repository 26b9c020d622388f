// Package repository is the vocabulary of the backup repository: what a volume image is, how
// it is written and read, and the catalog of the repo snapshots that make images findable.
//
// An image is the content of one volume at one instant. It consists of segments, and a
// segment consists of chunks of Meta.ChunkSize bytes. The last chunk is padded with zeros. An
// incremental image refers to the segments and chunks of its parent for everything that it
// does not change. A chunk that changes in part is kept in pages (of Meta.PageSize) from then
// on, so that the next change costs only the pages that it touches. A chunk that is put whole
// is one piece again.
//
// A repo snapshot is the manifest that names an image, with the Meta document beside it
// (volume.json). An image is visible only when its repo snapshot is saved. A crash before
// that leaves the repository as it was.
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

// ErrNotFound is wrapped by every error that says that a repo snapshot, or something that it
// refers to, is not in the repository.
var ErrNotFound = errors.New("not found in the repository")

// ErrCorrupt is wrapped by every error that says that the content of the repository violates
// its format.
var ErrCorrupt = errors.New("repository content is damaged")

// ErrUnavailable is wrapped by every error that says that the storage of the repository
// cannot be reached, or does not do what it is asked for. The same call may succeed later.
var ErrUnavailable = errors.New("object store is not available")

// ErrParentDeleted is wrapped by the error of a writer whose parent was deleted before the image was saved. Another attempt may find another
// parent, or none.
var ErrParentDeleted = errors.New("it was deleted while the backup ran, and maintenance may have deleted what it consists of: another attempt does without it")

// The default layout of an image; see Meta.WithDefaults.
const (
	// smallVolume is the largest volume with the smallest chunks and pages.
	smallVolume = 16 << 30

	minChunkSize = 64 << 10
	maxChunkSize = 1 << 20
	minPageSize  = 8 << 10
	maxPageSize  = 16 << 10

	// segmentChunks is how many chunks a segment has. Its index has 9 KiB: one changed chunk
	// in each of 100 segments is less than 1 MiB of metadata. A segment has at most 128 MiB,
	// which is what a stock reader of the repository buffers.
	segmentChunks = 128
)

// DefaultChunkSize returns the chunk size for a volume of size bytes: 64 KiB up to 16 GiB,
// twice that for each four times as much, and 1 MiB for more than 1 TiB.
//
// The first change of a chunk uploads all of it. Scattered writes of 4 KiB upload 256 times
// as much with chunks of 1 MiB, and 16 times with 64 KiB. Small chunks cost index: 75 bytes
// each in the image, and some 40 in the repository's own index, which a restore has in
// memory. They cost no CPU time that could be measured. So volumes of the size of a database
// have small chunks. Volumes of terabytes have a number of chunks that can be handled: 2
// million for 1 TiB.
func DefaultChunkSize(size int64) int64 {
	chunk := int64(minChunkSize)
	for limit := int64(smallVolume); chunk < maxChunkSize && size > limit; limit *= 4 {
		chunk *= 2
	}
	return chunk
}

// DefaultPageSize returns the page size for a volume of size bytes: 8 KiB up to 16 GiB, then
// 16 KiB. Scattered writes of 4 KiB upload two or four times as much. Smaller pages cost more
// in the index (75 bytes each) than they save.
func DefaultPageSize(size int64) int64 {
	if size <= smallVolume {
		return minPageSize
	}
	return maxPageSize
}

// DefaultCheckpointInterval is 20 seconds of work at 200 MB/s, which a kill loses. A
// checkpoint takes a few requests, which is little beside the packs of 4 GiB.
const DefaultCheckpointInterval = 4 << 30

// MaxInFlight is how many bytes of the volume may be read or put beyond the chunk that
// VolumeWriter.Advance was last called with. A checkpoint does not record them.
const MaxInFlight = 128 << 20

// MinCheckpointInterval has room for one segment that is recorded, one that is written, and
// the bytes in flight.
const MinCheckpointInterval = 2*segmentChunks*maxChunkSize + MaxInFlight

// TagOperation is the tag of a repo snapshot that has the operation ID. A repeated operation
// finds by it what it saved before.
const TagOperation = "blockmover.io/operation-id"

// TagReason is the tag of a repo snapshot that has the chain.Reason, if there is one.
const TagReason = "blockmover.io/reason"

// SnapshotID identifies a repo snapshot. DataUpload.status.snapshotID has it.
type SnapshotID string

// VolumeKey names a volume as a user does. A PVC that was deleted and created again under its
// name has the same key and another Meta.VolumeHandle.
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

// MetaVersion is the version of the volume.json document. Other versions are refused.
const MetaVersion = 1

// Meta is the content of volume.json. Sizes are bytes.
type Meta struct {
	Version int `json:"version"`
	// Size is the exact size of the volume. disk.raw is padded to a multiple of ChunkSize.
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
	// ChangeID is the storage's name for the instant of this image: the base of the next
	// delta.
	ChangeID string `json:"changeID,omitempty"`
	// SnapshotTime is the time of the VolumeSnapshot, not of the upload.
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
	// Damage says why the image cannot be used. Meta is empty then. Damage is nil for a
	// healthy repo snapshot.
	Damage error
}

// FindOperation returns the repo snapshot that an operation saved, if there is one.
func FindOperation(snapshots []Snapshot, operationID string) (Snapshot, bool) {
	for _, s := range snapshots {
		if operationID != "" && s.Tags[TagOperation] == operationID {
			return s, true
		}
	}
	return Snapshot{}, false
}

// Pages is a run of pages of one chunk. Offset is relative to the chunk; it and
// the length of Data are multiples of Meta.PageSize.
type Pages struct {
	Offset int64
	Data   []byte
}

// WriteStats counts what a VolumeWriter did, without what earlier runs of the operation did.
// All but the counts are bytes.
type WriteStats struct {
	// BytesUploaded were new to the repository, before compression and without
	// metadata and padding.
	BytesUploaded int64
	// IncompressibleBytes of them cannot be compressed, judged by samples. It is 0 if nothing is
	// compressed. What occurs twice may count twice.
	IncompressibleBytes int64
	// MetadataBytes were written for segments and the root, before compression.
	MetadataBytes int64
	// ChunksWritten were put, including zeros. ChunksInherited come from the parent.
	ChunksWritten   int64
	ChunksInherited int64
	// ZeroBytes were put and are zero.
	ZeroBytes int64
}

// Plus returns the sum of two statistics.
func (s WriteStats) Plus(other WriteStats) WriteStats {
	s.BytesUploaded += other.BytesUploaded
	s.IncompressibleBytes += other.IncompressibleBytes
	s.MetadataBytes += other.MetadataBytes
	s.ChunksWritten += other.ChunksWritten
	s.ChunksInherited += other.ChunksInherited
	s.ZeroBytes += other.ZeroBytes
	return s
}

// Compression says how data is compressed. It does not change which contents the repository
// calls equal.
type Compression string

// The compressions. S2 is the default. It compresses source files to 38 %. Zstd, at its
// fastest level, compresses them to 27 % and takes more than twice the CPU time. Both skip
// data that looks incompressible in some samples.
const (
	S2            Compression = "s2"
	Zstd          Compression = "zstd"
	NoCompression Compression = "none"

	DefaultCompression = S2
)

// Compressions are all compressions.
var Compressions = []Compression{S2, Zstd, NoCompression}

// WriterOptions say which image is written, and from what.
type WriterOptions struct {
	// Volume and Operation are those that the image will be saved with.
	Volume    VolumeKey
	Operation string
	// Parent is the image to inherit from, or "" for a full one.
	Parent SnapshotID
	// Basis says who has chosen what is put, in words of the caller. A run with another basis
	// does not continue what this one has recorded.
	Basis string
	// Compression of the data; "" is DefaultCompression.
	Compression Compression
	// CheckpointInterval is how many bytes a later run of the operation may have to put
	// again; 0 is DefaultCheckpointInterval. For large volumes, a value below
	// MinCheckpointInterval has no effect: a checkpoint records whole segments, while others
	// are being read.
	CheckpointInterval int64
}

// VolumeWriter writes one image. Put and PutPages are safe for concurrent use. Each chunk is
// put at most once. A chunk that is not put is inherited from the parent. It is zero if there
// is no parent, or if the parent ends before it.
//
// From time to time, Advance records what is finished. A writer for the same operation,
// parent, basis and Meta continues after it; see Resumed. Meta must have a SnapshotHandle, because
// the handle says what the device holds. The SnapshotTime may differ.
//
// Every writer must be closed. After Commit, or after any error, only Close may be called.
type VolumeWriter interface {
	// Meta is that of the image, with what NewWriter has filled in.
	Meta() Meta
	// Resumed is the first chunk that may be put. An earlier run of the operation has
	// finished the chunks before it. It is 0 if there was no earlier run.
	Resumed() int64
	// Put stores consecutive chunks, beginning with the given one. Many at once take less
	// time than one by one. data is one or more times Meta.ChunkSize bytes; the last chunk of
	// the volume is padded with zeros. data must not change while Put runs, and may be reused
	// afterwards.
	Put(ctx context.Context, chunk int64, data []byte) error
	// Paged reports whether PutPages accepts some of the pages of a chunk: the parent has the
	// chunk in pages of the same size, or the chunk is zero there. Otherwise PutPages needs
	// all pages.
	Paged(ctx context.Context, chunk int64) (bool, error)
	// PutPages stores pages of one chunk, in ascending order, instead of Put. The other pages
	// are inherited.
	PutPages(ctx context.Context, chunk int64, runs []Pages) error
	// Advance promises that no chunk below the given one will be put: the Puts of all of them
	// have returned. The writer then finishes what it can, so that its memory does not grow
	// with the volume. Advance is optional. It may run beside Puts of later chunks.
	Advance(ctx context.Context, chunk int64) error
	// Commit completes the image and saves it as a repo snapshot, which makes it a backup. The operation
	// then holds nothing else. Tags, Start and End come from s. Commit is idempotent: if the volume has a
	// repo snapshot of the same operation, Commit returns that one and saves nothing.
	//
	// If Commit fails with an error of the storage, or never returns, the repo snapshot may be there all the
	// same. Whoever finds it calls Catalog.Check before it counts on it.
	Commit(ctx context.Context, s Snapshot) (SnapshotID, WriteStats, error)
	// Close ends a writer whose image is not committed. It does nothing after Commit or after
	// another Close. It works with a context that is over.
	Close(ctx context.Context, how Ending) error
}

// Ending says what happens to what a writer has recorded.
type Ending int

// The endings.
const (
	// Discard drops it. A later run of the operation starts over.
	Discard Ending = iota
	// Suspend keeps it for a later run of the operation.
	Suspend
)

// VolumeReader reads one image. It is safe for concurrent use.
type VolumeReader interface {
	// ReaderAt reads the bytes of the volume. At the exact size it returns io.EOF.
	io.ReaderAt
	Meta() Meta
	// IsZero reports whether the chunk is known to be zero without reading it.
	IsZero(ctx context.Context, chunk int64) (bool, error)
	// Matches reports whether the chunk holds exactly data, which has Meta.ChunkSize bytes;
	// the last chunk of the volume is padded with zeros. It compares content IDs and
	// downloads nothing.
	Matches(ctx context.Context, chunk int64, data []byte) (bool, error)
	// ReadInOrder says that everything that is not zero will be read once, in ascending order, by several goroutines side by
	// side, so that the reader fetches ahead. Reads in another order get the same bytes, and take longer.
	ReadInOrder()
	io.Closer
}

// Catalog is the set of repo snapshots.
type Catalog interface {
	// Get returns one repo snapshot, or an error that wraps ErrNotFound. If the repo snapshot is
	// there and damaged, its ID and Volume are set beside the error.
	Get(ctx context.Context, id SnapshotID) (Snapshot, error)
	// List returns the repo snapshots of a volume, newest SnapshotTime first. Those whose
	// documents cannot be read come last, with their Damage.
	List(ctx context.Context, volume VolumeKey) ([]Snapshot, error)
	// Volumes returns the volumes that have repo snapshots, by namespace and PVC.
	Volumes(ctx context.Context) ([]VolumeKey, error)
	// Losses returns what hides repo snapshots from List and Volumes, as far as the repository can
	// tell. Get and OpenReader say it of an image that is not there.
	Losses(ctx context.Context) ([]Loss, error)
	// Check looks up all that an image consists of, in the index and in the list of packs, without reading
	// the data. The error wraps ErrNotFound if something is gone.
	Check(ctx context.Context, id SnapshotID) error
	// Delete deletes a repo snapshot. It is no error if it is gone.
	Delete(ctx context.Context, id SnapshotID) error
}

// Store is an open repository.
type Store interface {
	Catalog
	// NewWriter starts an image. If the parent is deleted in the first minute and before the image is saved, the writer may
	// fail with ErrParentDeleted. After that, what the image inherits stays in the repository. A ChunkSize or SegmentSize
	// of 0 in meta means that of the parent, or the default; another one than the parent's is
	// an error. A PageSize of 0 means the default, or the chunk size if that is less. The
	// writer sets Version, Kind and Parent in meta. The error wraps ErrNotFound or ErrCorrupt
	// if the parent, or something that it consists of, is missing or damaged.
	//
	// If the size differs from that of the parent, the chunk in which the smaller volume ends
	// must be put, unless the volume ends with a whole chunk.
	NewWriter(ctx context.Context, meta Meta, o WriterOptions) (VolumeWriter, error)
	// OpenReader opens the image of a repo snapshot. Reads use its context.
	OpenReader(ctx context.Context, id SnapshotID) (VolumeReader, error)
	// Compare emits the ranges in which two images may differ, without reading their data.
	// The ranges are in ascending order, do not touch, and end with the smaller volume.
	// Everything else is equal. Compare finds that what one image has inherited from the
	// other is equal, and that chunks with the same content are equal if both images are cut
	// in the same way. An error of emit ends Compare and is returned.
	Compare(ctx context.Context, a, b SnapshotID, emit func(block.Extent) error) error
	Close(ctx context.Context) error
}
