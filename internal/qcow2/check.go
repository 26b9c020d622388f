package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/blockmover/blockmover/internal/block"
)

// Check walks through all tables of the file, and reads none of its data. It returns nil if
// everything that is in use is inside the file, is used once, and is counted as in use.
// Compressed clusters may share a cluster of the file, and nothing else may. What is counted
// as in use and is not is no error: it is lost space.
func (l *Layer) Check(ctx context.Context) error {
	if err := l.check(ctx); err != nil {
		return fmt.Errorf("check qcow2 file: %w", err)
	}
	return nil
}

func (l *Layer) check(ctx context.Context) error {
	size := (l.fileSize + l.clusterSize() - 1) >> l.clusterBits << l.clusterBits
	var u usage
	var err error
	if u.alone, err = block.NewBitmap(size, l.clusterSize()); err != nil {
		return err
	}
	if u.shared, err = block.NewBitmap(size, l.clusterSize()); err != nil {
		return err
	}
	for _, part := range []struct {
		what string
		at   block.Extent
	}{
		{"header", block.Extent{Length: 1}},
		{"L1 table", block.Extent{Offset: l.l1Offset, Length: l.l1Entries * l1EntryBytes}},
		{"refcount table", block.Extent{Offset: l.refcountOffset, Length: l.refcountBytes}},
	} {
		if err := u.take(part.at, part.what, -1); err != nil {
			return err
		}
	}
	counts, err := l.refcountBlocks(ctx, &u)
	if err != nil {
		return err
	}
	if err := l.checkTables(ctx, &u); err != nil {
		return err
	}
	for _, used := range []*block.Bitmap{u.alone, u.shared} {
		if err := l.checkCounts(ctx, used, counts); err != nil {
			return err
		}
	}
	return nil
}

// usage is which clusters of the file are in use: alone, or shared by compressed clusters.
type usage struct{ alone, shared *block.Bitmap }

// take uses the clusters of a part of the file alone. The index is -1 if there is only one of
// its kind.
func (u *usage) take(e block.Extent, what string, index int64) error {
	if u.alone.AnyIn(e) || u.shared.AnyIn(e) {
		if index >= 0 {
			what = fmt.Sprintf("%s %d", what, index)
		}
		return malformed("%s at %d of the file is where something else is", what, e.Offset)
	}
	return u.alone.Set(e)
}

// share uses the clusters of a part of the file together with other compressed clusters.
func (u *usage) share(e block.Extent, index int64) error {
	if u.alone.AnyIn(e) {
		return malformed("compressed cluster %d at %d of the file is where something else is", index, e.Offset)
	}
	return u.shared.Set(e)
}

// refcountBlocks returns where the refcount blocks are, or 0 for a block that is not there.
func (l *Layer) refcountBlocks(ctx context.Context, u *usage) ([]int64, error) {
	// Of a large table, only the part that counts clusters of the file is read.
	perBlock := l.countsPerBlock()
	clusters := (l.fileSize + l.clusterSize() - 1) >> l.clusterBits
	n := min(l.refcountBytes/8, (clusters+perBlock-1)/perBlock)
	blocks := make([]int64, 0, n)
	for int64(len(blocks)) < n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		entries, err := l.entries(l.refcountOffset+int64(len(blocks))*8, min(batch, n-int64(len(blocks))))
		if err != nil {
			return nil, fmt.Errorf("read refcount table: %w", err)
		}
		for _, entry := range entries {
			var at int64
			if entry != 0 {
				index := int64(len(blocks))
				if at, err = l.place(fmt.Sprintf("refcount block %d", index), entry, l.clusterSize(), l.fileSize); err != nil {
					return nil, err
				}
				if err := u.take(block.Extent{Offset: at, Length: l.clusterSize()}, "refcount block", index); err != nil {
					return nil, err
				}
			}
			blocks = append(blocks, at)
		}
	}
	return blocks, nil
}

// countsPerBlock is how many clusters a refcount block counts.
func (l *Layer) countsPerBlock() int64 { return l.clusterSize() * 8 >> l.refcountOrder }

// checkTables visits each L2 table and each of its entries.
func (l *Layer) checkTables(ctx context.Context, u *usage) error {
	covered := l.clusterSize() * l.l2Entries()
	words := l.entryBytes() / 8
	clusters := (l.size + l.clusterSize() - 1) >> l.clusterBits
	for first := int64(0); first*covered < l.size; first += batch {
		n := min(batch, (l.size-1)/covered-first+1)
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
			if table == 0 {
				continue
			}
			if err := u.take(block.Extent{Offset: table, Length: l.clusterSize()}, "L2 table", index); err != nil {
				return err
			}
			begin := index * l.l2Entries()
			end := min(begin+l.l2Entries(), clusters)
			for c := begin; c < end; c += batch {
				if err := ctx.Err(); err != nil {
					return err
				}
				l2, err := l.entries(table+(c-begin)*l.entryBytes(), min(batch, end-c)*words)
				if err != nil {
					return fmt.Errorf("read L2 table: %w", err)
				}
				if err := l.checkEntries(c, l2, u); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (l *Layer) checkEntries(first int64, l2 []uint64, u *usage) error {
	words := int(l.entryBytes() / 8)
	for i := 0; i < len(l2); i += words {
		var bitmap uint64
		if l.extended {
			bitmap = l2[i+1]
		}
		index := first + int64(i/words)
		c, err := l.decode(index, l2[i], bitmap)
		switch {
		case err != nil:
		case c.compressed > 0:
			err = u.share(block.Extent{Offset: c.host, Length: c.compressed}, index)
		case c.host != 0 && c.host < l.fileSize:
			err = u.take(block.Extent{Offset: c.host, Length: 1}, "cluster", index)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkCounts checks that the clusters that are in use are counted as in use.
func (l *Layer) checkCounts(ctx context.Context, used *block.Bitmap, blocks []int64) error {
	perBlock := l.countsPerBlock()
	covered := perBlock << l.clusterBits
	raw := make([]byte, l.clusterSize())
	for off := int64(0); off < used.Size(); off += covered {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := block.Extent{Offset: off, Length: covered}
		if !used.AnyIn(part) {
			continue
		}
		index := off / covered
		if index >= int64(len(blocks)) || blocks[index] == 0 {
			return malformed("clusters from %d of the file on are in use, and not counted", off)
		}
		if err := readFull(l.file, raw, blocks[index]); err != nil {
			return fmt.Errorf("read refcount block %d: %w", index, err)
		}
		for e := range used.Extents(part) {
			for at := e.Offset; at < e.End(); at += l.clusterSize() {
				if refcount(raw, at>>l.clusterBits-index*perBlock, l.refcountOrder) == 0 {
					return malformed("the cluster at %d of the file is in use, and counted as free", at)
				}
			}
		}
	}
	return nil
}

// refcount reads one count of 1 << order bits.
func refcount(raw []byte, i int64, order uint32) uint64 {
	switch order {
	case 3:
		return uint64(raw[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(raw[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(raw[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(raw[i*8:])
	}
	width := int64(1) << order
	return uint64(raw[i*width/8]) >> (i * width % 8) & (1<<width - 1)
}
