package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"

	"github.com/blockmover/blockmover/internal/block"
)

// ErrMalformed is wrapped by every error that says that a file violates the format.
var ErrMalformed = errors.New("malformed qcow2 file")

// ErrUnsupported is wrapped by every error that says that a file uses the format in a way
// that this package does not read.
var ErrUnsupported = errors.New("unsupported qcow2 file")

// Fields of the header, by their offsets in bytes. All numbers are big-endian.
const (
	offVersion          = 4
	offBackingOffset    = 8
	offBackingSize      = 16
	offClusterBits      = 20
	offSize             = 24
	offCrypt            = 32
	offL1Size           = 36
	offL1Offset         = 40
	offRefcountOffset   = 48
	offRefcountClusters = 56
	offIncompatible     = 72
	offRefcountOrder    = 96
	offHeaderLength     = 100
	offCompression      = 104

	headerBytesV2 = 72
	headerBytesV3 = 104
)

// Incompatible features, by their bits.
const (
	featureDirty = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtendedL2

	featuresKnown = featureDirty | featureCorrupt | featureDataFile | featureCompression | featureExtendedL2
)

// Limits. QEMU has the same, but for the size of a volume.
const (
	minClusterBits = 9
	maxClusterBits = 21
	// minExtendedBits: a cluster with extended entries has 32 subclusters of 512 bytes or more.
	minExtendedBits = 14
	maxL1Bytes      = 32 << 20
	maxRefcountBits = 6
	// maxRefcountTable is the most bytes that the table of refcount blocks may have.
	maxRefcountTable = 8 << 20
	maxBackingName   = 1023
)

// compression is how the compressed clusters of a file are compressed.
type compression uint8

const (
	zlib compression = 0
	zstd compression = 1
)

// header is what a file says of itself, checked.
type header struct {
	version     uint32
	backing     string
	clusterBits uint32
	size        int64
	l1Entries   int64
	l1Offset    int64
	// refcountOffset and refcountBytes are the table of refcount blocks. A count has
	// 1 << refcountOrder bits.
	refcountOffset int64
	refcountBytes  int64
	refcountOrder  uint32
	extended       bool
	compression    compression
}

func (h *header) clusterSize() int64 { return 1 << h.clusterBits }

// entryBytes is the size of an L2 entry.
func (h *header) entryBytes() int64 {
	if h.extended {
		return 16
	}
	return 8
}

// l2Entries is how many clusters an L2 table describes.
func (h *header) l2Entries() int64 { return h.clusterSize() / h.entryBytes() }

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrMalformed}, args...)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnsupported}, args...)...)
}

func readHeader(r io.ReaderAt, fileSize int64) (*header, error) {
	var raw [offCompression + 1]byte
	n, err := r.ReadAt(raw[:min(fileSize, int64(len(raw)))], 0)
	switch {
	case err != nil && !errors.Is(err, io.EOF):
		return nil, fmt.Errorf("read header: %w", err)
	case n < headerBytesV2:
		return nil, malformed("the file has %d bytes, a header has at least %d", fileSize, headerBytesV2)
	case string(raw[:4]) != "QFI\xfb":
		return nil, malformed("it begins with %q", raw[:4])
	}
	be := binary.BigEndian
	h := &header{
		version:       be.Uint32(raw[offVersion:]),
		clusterBits:   be.Uint32(raw[offClusterBits:]),
		l1Entries:     int64(be.Uint32(raw[offL1Size:])),
		refcountOrder: 4,
	}
	switch {
	case h.version != 2 && h.version != 3:
		return nil, unsupported("version is %d, want 2 or 3", h.version)
	case h.version == 3 && n < headerBytesV3:
		return nil, malformed("the file has %d bytes, a header of version 3 has at least %d", fileSize, headerBytesV3)
	case !h.clustersInRange():
		return nil, malformed("a cluster has 2^%d bytes, want 2^%d to 2^%d", h.clusterBits, minClusterBits, maxClusterBits)
	case be.Uint32(raw[offCrypt:]) != 0:
		return nil, unsupported("it is encrypted (method %d)", be.Uint32(raw[offCrypt:]))
	}
	if h.version == 3 {
		if err := h.features(raw[:n]); err != nil {
			return nil, err
		}
	}
	if err := h.tables(raw[:], fileSize); err != nil {
		return nil, err
	}
	if err := h.backingName(r, raw[:], fileSize); err != nil {
		return nil, err
	}
	return h, nil
}

func (h *header) clustersInRange() bool {
	return h.clusterBits >= minClusterBits && h.clusterBits <= maxClusterBits
}

// features reads what only version 3 has.
func (h *header) features(raw []byte) error {
	be := binary.BigEndian
	features := be.Uint64(raw[offIncompatible:])
	h.refcountOrder = be.Uint32(raw[offRefcountOrder:])
	length := be.Uint32(raw[offHeaderLength:])
	switch {
	case features&^featuresKnown != 0:
		return unsupported("it has the incompatible feature of bit %d", bits.TrailingZeros64(features&^featuresKnown))
	case features&featureCorrupt != 0:
		return malformed("it is marked as corrupt")
	case features&featureDirty != 0:
		return malformed("it is marked as dirty: its writer has not closed it")
	case features&featureDataFile != 0:
		return unsupported("its data is in an external file")
	case h.refcountOrder > maxRefcountBits:
		return malformed("a refcount has 2^%d bits, want 2^%d at most", h.refcountOrder, maxRefcountBits)
	case length < headerBytesV3 || int64(length) > h.clusterSize():
		return malformed("the header has %d bytes, want %d to %d", length, headerBytesV3, h.clusterSize())
	}
	if h.extended = features&featureExtendedL2 != 0; h.extended && h.clusterBits < minExtendedBits {
		return malformed("a cluster with subclusters has 2^%d bytes, want 2^%d or more", h.clusterBits, minExtendedBits)
	}
	if length > offCompression && len(raw) > offCompression {
		h.compression = compression(raw[offCompression])
	}
	if h.compression != zlib && h.compression != zstd {
		return unsupported("compression type is %d, want 0 (zlib) or 1 (zstd)", h.compression)
	}
	if (h.compression != zlib) != (features&featureCompression != 0) {
		return malformed("compression type is %d, and the feature bit says otherwise", h.compression)
	}
	return nil
}

// tables reads the size of the disk, and where the L1 table and the refcount table are.
func (h *header) tables(raw []byte, fileSize int64) error {
	be := binary.BigEndian
	size := be.Uint64(raw[offSize:])
	if size == 0 || size > block.MaxVolumeSize {
		return malformed("the disk has %d bytes, want 1 to %d", size, int64(block.MaxVolumeSize))
	}
	h.size = int64(size)
	covered := h.clusterSize() * h.l2Entries()
	needed := (h.size + covered - 1) / covered
	switch {
	case h.l1Entries < needed:
		return malformed("the L1 table has %d entries, a disk of %d bytes needs %d", h.l1Entries, h.size, needed)
	case h.l1Entries*l1EntryBytes > maxL1Bytes:
		return unsupported("the L1 table has %d bytes, want %d at most", h.l1Entries*l1EntryBytes, maxL1Bytes)
	}
	var err error
	if h.l1Offset, err = h.place(only("L1 table"), be.Uint64(raw[offL1Offset:]), h.l1Entries*l1EntryBytes, fileSize); err != nil {
		return err
	}
	clusters := int64(be.Uint32(raw[offRefcountClusters:]))
	if most := int64(maxRefcountTable) >> h.clusterBits; clusters == 0 || clusters > most {
		return malformed("the refcount table has %d clusters, want 1 to %d", clusters, most)
	}
	h.refcountBytes = clusters << h.clusterBits
	h.refcountOffset, err = h.place(only("refcount table"), be.Uint64(raw[offRefcountOffset:]), h.refcountBytes, fileSize)
	return err
}

// part is a part of the file, for messages. They are rendered only when something is wrong.
type part struct {
	kind string
	// index is -1 if there is only one of the kind.
	index int64
}

func only(kind string) part { return part{kind, -1} }

// String names the part.
func (p part) String() string {
	if p.index < 0 {
		return p.kind
	}
	return fmt.Sprintf("%s %d", p.kind, p.index)
}

// place checks where a part is that begins with a cluster.
func (h *header) place(what part, offset uint64, length, fileSize int64) (int64, error) {
	switch {
	case offset&uint64(h.clusterSize()-1) != 0:
		return 0, malformed("the %s is at %d, which is no multiple of the cluster size %d", what, offset, h.clusterSize())
	case offset == 0:
		return 0, malformed("the %s is at 0, where the header is", what)
	case offset > uint64(fileSize) || length > fileSize-int64(offset):
		return 0, malformed("the %s of %d bytes is at %d, outside the file of %d bytes", what, length, offset, fileSize)
	}
	return int64(offset), nil
}

func (h *header) backingName(r io.ReaderAt, raw []byte, fileSize int64) error {
	be := binary.BigEndian
	offset, length := be.Uint64(raw[offBackingOffset:]), int64(be.Uint32(raw[offBackingSize:]))
	switch {
	case offset == 0:
		return nil
	case length > maxBackingName:
		return malformed("the name of the backing file has %d bytes, want %d at most", length, maxBackingName)
	case offset > uint64(fileSize) || length > fileSize-int64(offset):
		return malformed("the name of the backing file is outside the file")
	}
	name := make([]byte, length)
	if err := readFull(r, name, int64(offset)); err != nil {
		return fmt.Errorf("read name of the backing file: %w", err)
	}
	h.backing = string(name)
	return nil
}

// readFull reads exactly len(p) bytes. Fewer are an error: the file has become shorter.
func readFull(r io.ReaderAt, p []byte, off int64) error {
	n, err := r.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == nil || errors.Is(err, io.EOF):
		return fmt.Errorf("%d of %d bytes at %d: %w", n, len(p), off, io.ErrUnexpectedEOF)
	}
	return fmt.Errorf("%d bytes at %d: %w", len(p), off, err)
}
