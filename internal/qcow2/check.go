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
	for _, p := range []struct {
		what part
		at   block.Extent
	}{
		{only("header"), block.Extent{Length: 1}},
		{only("L1 table"), block.Extent{Offset: l.l1Offset, Length: l.l1Entries * l1EntryBytes}},
		{only("refcount table"), block.Extent{Offset: l.refcountOffset, Length: l.refcountBytes}},
	} {
		if err := u.take(p.at, p.what); err != nil {
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

// take uses the clusters of a part of the file alone.
func (u *usage) take(e block.Extent, what part) error {
	if u.alone.AnyIn(e) || u.shared.AnyIn(e) {
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
				what := part{"refcount block", int64(len(blocks))}
				if at, err = l.place(what, entry, l.clusterSize(), l.fileSize); err != nil {
					return nil, err
				}
				if err := u.take(block.Extent{Offset: at, Length: l.clusterSize()}, what); err != nil {
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
	return l.tables(ctx, block.Extent{Length: l.size}, func(index, table int64, e block.Extent) error {
		if table == 0 {
			return nil
		}
		if err := u.take(block.Extent{Offset: table, Length: l.clusterSize()}, part{"L2 table", index}); err != nil {
			return err
		}
		return l.clusters(ctx, table, e, func(index int64, c cluster, _ block.Extent) error {
			switch {
			case c.compressed > 0:
				return u.share(block.Extent{Offset: c.host, Length: c.compressed}, index)
			case c.host != 0 && c.host < l.fileSize:
				return u.take(block.Extent{Offset: c.host, Length: 1}, part{"cluster", index})
			}
			return nil
		})
	})
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
		counted := block.Extent{Offset: off, Length: covered}
		if !used.AnyIn(counted) {
			continue
		}
		index := off / covered
		if index >= int64(len(blocks)) || blocks[index] == 0 {
			return malformed("clusters from %d of the file on are in use, and not counted", off)
		}
		if err := readFull(l.file, raw, blocks[index]); err != nil {
			return fmt.Errorf("read refcount block %d: %w", index, err)
		}
		for e := range used.Extents(counted) {
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
