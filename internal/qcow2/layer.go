package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/bits"

	"github.com/blockmover/blockmover/internal/block"
)

// State is what a layer says of a part of its disk.
type State int

// The states.
const (
	// Absent is in the layer below. Below the lowest layer are zeros.
	Absent State = iota
	// Zero reads as zeros, whatever is below.
	Zero
	// Data is in the file.
	Data
)

// String names the state.
func (s State) String() string { return [...]string{"absent", "zero", "data"}[s] }

// Extent is a part of a disk in one state.
type Extent struct {
	block.Extent
	State State
}

// Layer is one open file. It is safe for concurrent use if its io.ReaderAt is.
type Layer struct {
	file     io.ReaderAt
	fileSize int64
	header
	scratch buffers
}

// Open reads the header of a file of the given size. The file must not change while the
// layer is in use. Errors wrap ErrMalformed or ErrUnsupported, or come from the file.
func Open(file io.ReaderAt, fileSize int64) (*Layer, error) {
	h, err := readHeader(file, fileSize)
	if err != nil {
		return nil, fmt.Errorf("open qcow2 file: %w", err)
	}
	return &Layer{file: file, fileSize: fileSize, header: *h}, nil
}

// Size is the size of the disk in bytes.
func (l *Layer) Size() int64 { return l.size }

// BackingFile is the name that the file gives for the layer below, or "". It is for messages
// only.
func (l *Layer) BackingFile() string { return l.backing }

// Extents emits the states of a part of the disk, in ascending order and without gaps.
// Neighbours may have the same state. An error of emit ends it and is returned as it is.
func (l *Layer) Extents(ctx context.Context, within block.Extent, emit func(Extent) error) error {
	if err := within.CheckWithin(l.size); err != nil {
		return err
	}
	return l.walk(ctx, within, func(p piece) error { return emit(p.Extent) })
}

// piece is an extent, and where its data is.
type piece struct {
	Extent
	// host is where in the file the data is. Of a compressed cluster, all of it is there, and
	// skip is where in the cluster the extent begins.
	host int64
	// compressed is the most bytes that the compressed cluster may have, or 0.
	compressed int64
	skip       int64
}

const (
	l1EntryBytes = 8
	// batch is how many entries are read at once: 4 KiB of L2 entries, or 8 of extended ones.
	batch = 512

	maskOffset   = 0x00fffffffffffe00
	flagCopied   = 1 << 63
	flagCompress = 1 << 62
	flagZero     = 1
	// reservedL1 must be 0 in an L1 entry, reservedL2 in an L2 entry that is not compressed.
	reservedL1 = ^uint64(flagCopied | maskOffset)
	reservedL2 = ^uint64(flagCopied | maskOffset | flagZero)

	subclusters = 32
	sectorBytes = 512
)

// walk visits the pieces of a part of the disk in ascending order. Neighbours that are beside
// each other in the file, too, are one piece.
func (l *Layer) walk(ctx context.Context, within block.Extent, visit func(piece) error) error {
	j := joiner{visit: visit}
	err := l.tables(ctx, within, func(_, table int64, e block.Extent) error {
		if table == 0 {
			return j.add(piece{Extent: Extent{e, Absent}})
		}
		return l.clusters(ctx, table, e, func(_ int64, c cluster, e block.Extent) error { return l.pieces(c, e, &j) })
	})
	if err != nil {
		return err
	}
	return j.flush()
}

// tables visits the L2 tables of a part of the disk in ascending order, each with what it
// describes of that part. A table at 0 does not exist.
func (l *Layer) tables(ctx context.Context, within block.Extent, visit func(index, table int64, e block.Extent) error) error {
	covered := l.clusterSize() * l.l2Entries()
	return batches(ctx, within, covered, func(first, n int64) error {
		l1, err := l.entries(l.l1Offset+first*l1EntryBytes, n)
		if err != nil {
			return fmt.Errorf("read L1 table: %w", err)
		}
		for i, entry := range l1 {
			index := first + int64(i)
			table, err := l.table(index, entry)
			if err != nil {
				return err
			}
			if err := visit(index, table, unit(within, index, covered)); err != nil {
				return err
			}
		}
		return nil
	})
}

// table returns where the L2 table of an L1 entry is, or 0.
func (l *Layer) table(index int64, entry uint64) (int64, error) {
	switch {
	case entry&reservedL1 != 0:
		return 0, malformed("L1 entry %d is %#x, which has reserved bits", index, entry)
	case entry&maskOffset == 0:
		return 0, nil
	}
	return l.place(part{"L2 table", index}, entry&maskOffset, l.clusterSize(), l.fileSize)
}

// clusters visits the clusters of a part of the disk that one L2 table describes, each with
// what it has of that part.
func (l *Layer) clusters(ctx context.Context, table int64, within block.Extent, visit func(index int64, c cluster, e block.Extent) error) error {
	words := l.entryBytes() / 8
	return batches(ctx, within, l.clusterSize(), func(first, n int64) error {
		l2, err := l.entries(table+first%l.l2Entries()*l.entryBytes(), n*words)
		if err != nil {
			return fmt.Errorf("read L2 table: %w", err)
		}
		for i := range n {
			var bitmap uint64
			if l.extended {
				bitmap = l2[i*words+1]
			}
			c, err := l.decode(first+i, l2[i*words], bitmap)
			if err != nil {
				return err
			}
			if err := visit(first+i, c, unit(within, first+i, l.clusterSize())); err != nil {
				return err
			}
		}
		return nil
	})
}

// batches cuts a part of the disk into units of the given size, and calls do for at most batch
// of them at once.
func batches(ctx context.Context, within block.Extent, size int64, do func(first, n int64) error) error {
	last := (within.End() - 1) / size
	for first := within.Offset / size; first <= last; first += batch {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := do(first, min(batch, last-first+1)); err != nil {
			return err
		}
	}
	return nil
}

// unit returns what a unit has of a part of the disk.
func unit(within block.Extent, index, size int64) block.Extent {
	begin := max(index*size, within.Offset)
	return block.Extent{Offset: begin, Length: min((index+1)*size, within.End()) - begin}
}

// entries reads n 64-bit numbers.
func (l *Layer) entries(off, n int64) ([]uint64, error) {
	raw := make([]byte, n*8)
	if err := readFull(l.file, raw, off); err != nil {
		return nil, err
	}
	entries := make([]uint64, n)
	for i := range entries {
		entries[i] = binary.BigEndian.Uint64(raw[i*8:])
	}
	return entries, nil
}

// cluster is a decoded L2 entry. Bit i of data and zero is subcluster i; a cluster of a file
// without extended entries is subcluster 0.
type cluster struct {
	data, zero uint32
	host       int64
	// compressed is the most bytes that the compressed cluster may have, or 0.
	compressed int64
}

// decode checks an L2 entry.
func (l *Layer) decode(index int64, entry, bitmap uint64) (cluster, error) {
	if entry&flagCompress != 0 {
		return l.decodeCompressed(index, entry, bitmap)
	}
	reserved := reservedL2
	if l.extended || l.version < 3 {
		reserved |= flagZero
	}
	if entry&reserved != 0 {
		return cluster{}, malformed("L2 entry of cluster %d is %#x, which has reserved bits", index, entry)
	}
	host := entry & maskOffset
	var c cluster
	switch {
	case l.extended:
		c.data, c.zero = uint32(bitmap), uint32(bitmap>>subclusters)
		if both := c.data & c.zero; both != 0 {
			return cluster{}, malformed("subcluster %d of cluster %d is both data and zero", bits.TrailingZeros32(both), index)
		}
	case entry&flagZero != 0:
		c.zero = 1
	case host != 0:
		c.data = 1
	}
	if host == 0 {
		if c.data != 0 {
			return cluster{}, malformed("cluster %d has data, and no place in the file", index)
		}
		return c, nil
	}
	// What the disk does not show of its last cluster need not be in the file. Nor need the
	// subclusters behind the last one with data.
	shown := min(l.clusterSize(), l.size-index*l.clusterSize())
	if l.extended {
		shown = min(shown, int64(bits.Len32(c.data))*l.clusterSize()/subclusters)
	}
	if c.data == 0 {
		shown = 0
	}
	var err error
	c.host, err = l.place(part{"cluster", index}, host, shown, l.fileSize)
	return c, err
}

// decodeCompressed checks the entry of a compressed cluster: where it is, and in how many
// sectors of 512 bytes it lies beyond the first.
func (l *Layer) decodeCompressed(index int64, entry, bitmap uint64) (cluster, error) {
	shift := 62 - (l.clusterBits - 8)
	host := int64(entry & (1<<shift - 1))
	sectors := int64(entry&^(flagCompress|flagCopied)>>shift) + 1
	switch {
	case bitmap != 0:
		return cluster{}, malformed("cluster %d is compressed, and has subclusters", index)
	case host < l.clusterSize() || host >= l.fileSize:
		return cluster{}, malformed("compressed cluster %d is at %d, in a file of %d bytes", index, host, l.fileSize)
	}
	// The last sector may reach over the end of the file.
	length := min(sectors*sectorBytes-host%sectorBytes, l.fileSize-host)
	return cluster{data: 1, host: host, compressed: length}, nil
}

// pieces visits a part of one cluster.
func (l *Layer) pieces(c cluster, e block.Extent, j *joiner) error {
	size := l.clusterSize()
	skip := e.Offset % size
	if !l.extended || c.compressed > 0 {
		return j.add(l.piece(c, 0, e, skip))
	}
	sub := size / subclusters
	for e.Length > 0 {
		n := min(sub-skip%sub, e.Length)
		if err := j.add(l.piece(c, skip/sub, block.Extent{Offset: e.Offset, Length: n}, skip)); err != nil {
			return err
		}
		e.Offset, e.Length, skip = e.Offset+n, e.Length-n, skip+n
	}
	return nil
}

func (l *Layer) piece(c cluster, sub int64, e block.Extent, skip int64) piece {
	p := piece{Extent: Extent{e, Absent}}
	switch {
	case c.zero>>sub&1 != 0:
		p.State = Zero
	case c.data>>sub&1 != 0 && c.compressed > 0:
		p.State, p.host, p.compressed, p.skip = Data, c.host, c.compressed, skip
	case c.data>>sub&1 != 0:
		p.State, p.host = Data, c.host+skip
	}
	return p
}

// joiner joins pieces that one access can serve.
type joiner struct {
	visit func(piece) error
	last  piece
}

func (j *joiner) add(p piece) error {
	l := &j.last
	joins := l.Length > 0 && l.State == p.State && l.compressed == 0 && p.compressed == 0 &&
		(p.State != Data || l.host+l.Length == p.host)
	if joins {
		l.Length += p.Length
		return nil
	}
	if err := j.flush(); err != nil {
		return err
	}
	j.last = p
	return nil
}

func (j *joiner) flush() error {
	if j.last.Length == 0 {
		return nil
	}
	p := j.last
	j.last = piece{}
	return j.visit(p)
}
