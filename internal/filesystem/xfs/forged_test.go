package xfs

import (
	"encoding/binary"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
)

// scribe writes log records as a kernel would.
type scribe struct {
	t      *testing.T
	f      *forged
	super  *superblock
	tail   uint64
	format uint32
	uuid   [16]byte
}

func newScribe(t *testing.T, name string) *scribe {
	t.Helper()
	f := &forged{base: fixture(t, name), sectors: map[int64][]byte{}}
	s, err := parseSuperblock(f.base, int64(len(f.base)))
	require.NoError(t, err)
	return &scribe{t: t, f: f, super: s, format: formatLittleEndian, uuid: s.uuid}
}

type region = []byte

// write adds a record with a transaction of some items to the log. Without commit it is not committed.
func (s *scribe) write(commit bool, items ...[]region) {
	s.t.Helper()
	be, le := binary.BigEndian, binary.LittleEndian
	count := uint32(0)
	operation := func(data []byte, flags byte, content region) []byte {
		count++
		data = be.AppendUint32(data, 77)
		data = be.AppendUint32(data, uint32(len(content)))
		return append(append(data, 0x69, flags, 0, 0), content...)
	}
	data := operation(nil, operationStart, nil)
	data = operation(data, 0, append(le.AppendUint32(nil, transactionMagic), make([]byte, 12)...))
	for _, i := range items {
		for _, r := range i {
			data = operation(data, 0, r)
		}
	}
	if commit {
		data = operation(data, operationCommit, nil)
	}

	l := &logReader{device: newDevice(s.f, int64(len(s.f.base))), super: s.super}
	at, err := l.findHead()
	require.NoError(s.t, err)
	before, found, err := l.seekBack(at, l.super.logSectors, 1)
	require.NoError(s.t, err)
	require.True(s.t, found)
	cycle := uint32(before.lsn >> 32)
	lsn := uint64(cycle)<<32 | uint64(at)
	if s.tail == 0 {
		s.tail = lsn
	}
	h := make([]byte, sector)
	be.PutUint32(h, recordMagic)
	be.PutUint32(h[4:], cycle)
	be.PutUint32(h[8:], 2)
	be.PutUint32(h[12:], uint32(len(data)))
	be.PutUint64(h[16:], lsn)
	be.PutUint64(h[24:], s.tail)
	be.PutUint32(h[40:], count)
	be.PutUint32(h[300:], s.format)
	copy(h[304:], s.uuid[:])
	be.PutUint32(h[320:], cycleBytes)
	data = append(data, make([]byte, -len(data)&(sector-1))...)
	for i := 0; i < len(data); i += sector {
		copy(h[44+i/sector*4:], data[i:i+4])
		be.PutUint32(data[i:], cycle)
	}
	s.f.write(s.super.logOffset+at*sector, slices.Concat(h, data))
	s.f.seal(s.super, s.super.logOffset+at*sector)
}

func (s *scribe) open() (*FileSystem, error) { return Open(s.f, int64(len(s.f.base))) }

// inode is the item of a changed inode: its core, as change leaves it.
func (s *scribe) inode(ino uint64, change func(core []byte)) []region {
	s.t.Helper()
	off, err := s.super.inodeOffset(ino)
	require.NoError(s.t, err)
	core := make([]byte, s.super.loggedCore()+4)
	coreToDisk(s.f.read(off, int(s.super.inodeSize)), core, s.super.v5) // to swap bytes works both ways
	change(core)
	le := binary.LittleEndian
	b := make([]byte, 56)
	le.PutUint16(b, itemInode)
	le.PutUint16(b[2:], 2)
	le.PutUint32(b[4:], 1)
	le.PutUint64(b[16:], ino)
	le.PutUint64(b[40:], uint64(off/sector))
	le.PutUint32(b[48:], 2)
	le.PutUint32(b[52:], uint32(off%sector))
	return []region{b, core[:s.super.loggedCore()]}
}

// buffer is the item of a changed block: its first chunk, or nothing if it is cancelled.
func (s *scribe) buffer(off int64, chunk []byte, flags uint16) []region {
	le := binary.LittleEndian
	b := make([]byte, 24)
	le.PutUint16(b, itemBuffer)
	le.PutUint16(b[2:], 1)
	le.PutUint16(b[4:], flags)
	le.PutUint16(b[6:], uint16(s.super.blockSize/sector))
	le.PutUint64(b[8:], uint64(off/sector))
	le.PutUint32(b[16:], 1)
	if chunk == nil {
		return []region{b}
	}
	le.PutUint16(b[2:], 2)
	b[20] = 1
	return []region{b, chunk}
}

// intent is an intent, or the end of one.
func intentItem(kind uint16, id uint64, inodes ...uint64) []region {
	le := binary.LittleEndian
	b := make([]byte, 88)
	le.PutUint16(b, kind)
	le.PutUint16(b[2:], 1)
	le.PutUint64(b[8:], id)
	for i, ino := range inodes {
		le.PutUint64(b[16+8*i:], ino)
	}
	return []region{b}
}

func chmod(core []byte) { binary.LittleEndian.PutUint16(core[2:], 0o100741) }

// TestForgedLog replays transactions that no kernel here writes: of version 4, and unfinished ones.
func TestForgedLog(t *testing.T) {
	newer := func(core []byte) { chmod(core); core[31] = 0x7f } // di_flushiter
	older := func(core []byte) { chmod(core); clear(core[30:32]) }
	for name, c := range map[string]struct {
		write   func(s *scribe, ino uint64)
		changed bool
	}{
		"inode":           {func(s *scribe, ino uint64) { s.write(true, s.inode(ino, newer)) }, true},
		"not committed":   {func(s *scribe, ino uint64) { s.write(false, s.inode(ino, newer)) }, false},
		"older inode":     {func(s *scribe, ino uint64) { s.write(true, s.inode(ino, older)) }, false},
		"done elsewhere":  {func(s *scribe, ino uint64) { s.write(true, s.inode(ino, older)); s.write(true, s.inode(ino, newer)) }, true},
		"freed afterward": {func(s *scribe, ino uint64) { s.write(true, s.inode(ino, newer)); s.cancel(ino) }, false},
		"freed before":    {func(s *scribe, ino uint64) { s.cancel(ino); s.write(true, s.inode(ino, newer)) }, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScribe(t, "version4")
			before, err := s.open()
			require.NoError(t, err)
			require.Empty(t, before.Describe().Notes)
			id := filesystemtest.Lookup(t, before, "large")
			// The inode on the device was written once.
			off, err := s.super.inodeOffset(uint64(id))
			require.NoError(t, err)
			s.f.write(off+30, []byte{0, 5})

			c.write(s, uint64(id))
			fsys, err := s.open()
			require.NoError(t, err)
			info, err := fsys.Stat(id)
			require.NoError(t, err)
			require.Equal(t, c.changed, info.Mode == fs.FileMode(0o741), info.Mode)
		})
	}
}

func (s *scribe) cancel(ino uint64) {
	off, err := s.super.inodeOffset(ino)
	require.NoError(s.t, err)
	s.write(true, s.buffer(off&^(sector-1), nil, bufferCancel))
}

// TestForgedBuffer replays the change of a directory.
func TestForgedBuffer(t *testing.T) {
	s := newScribe(t, "version4")
	before, err := s.open()
	require.NoError(t, err)
	id := filesystemtest.Lookup(t, before, "d100")
	n, err := before.inode(uint64(id))
	require.NoError(t, err)
	for e, err := range before.extents(n, &n.data, 0) {
		require.NoError(t, err)
		chunk := s.f.read(e.device, chunkSize)
		copy(chunk[strings.Index(string(chunk), "F0"):], "G0")
		s.write(true, s.buffer(e.device, chunk, 0))
		break
	}
	fsys, err := s.open()
	require.NoError(t, err)
	names := map[string]bool{}
	for e, err := range fsys.ReadDir(id) {
		require.NoError(t, err)
		names[e.Name] = true
	}
	require.True(t, names["G0"] && !names["F0"], names)
	require.Len(t, names, 100)
}

// TestUnfinished refuses what a mount would still change.
func TestUnfinished(t *testing.T) {
	open := func(fsys *FileSystem, id filesystem.ID) error { _, err := fsys.Open(id); return err }
	attributes := func(fsys *FileSystem, id filesystem.ID) error { _, err := fsys.Attributes(id); return err }
	for name, c := range map[string]struct {
		kind   uint16
		done   bool
		do     func(*FileSystem, filesystem.ID) error
		refuse bool
	}{
		"map":                 {itemMap, false, open, true},
		"map, done":           {itemMap, true, open, false},
		"map, attributes":     {itemMap, false, attributes, false},
		"attribute":           {itemAttribute, false, attributes, true},
		"attribute, content":  {itemAttribute, false, open, false},
		"exchange":            {itemExchange, false, open, true},
		"exchange, done":      {itemExchange, true, open, false},
		"space is not looked": {itemExtentFree, false, open, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScribe(t, "version4")
			before, err := s.open()
			require.NoError(t, err)
			id := filesystemtest.Lookup(t, before, "large")
			s.write(true, intentItem(c.kind, 42, 9999, uint64(id)), intentItem(c.kind, 43, uint64(id), 0))
			if c.done {
				s.write(true, intentItem(c.kind+1, 42), intentItem(c.kind+1, 43))
			}
			fsys, err := s.open()
			require.NoError(t, err)
			err = c.do(fsys, id)
			require.Equal(t, c.refuse, errors.Is(err, filesystem.ErrUnsupported), err)
			notes := strings.Join(fsys.Describe().Notes, "\n")
			require.Equal(t, !c.done && c.kind != itemExtentFree, strings.Contains(notes, "a mount would finish"), notes)
		})
	}
}

// TestForgedEnds finds the ends of a log that was torn, and refuses one of another machine.
func TestForgedEnds(t *testing.T) {
	s := newScribe(t, "version5")
	before, err := s.open()
	require.NoError(t, err)
	replayed := before.Describe().Notes
	require.Len(t, replayed, 1)
	root := uint64(before.Root())
	l := &logReader{device: newDevice(s.f, int64(len(s.f.base))), super: s.super}
	ends, err := l.ends()
	require.NoError(t, err)
	last, _, err := l.seekBack(ends.head, 1000, 1)
	require.NoError(t, err)
	s.tail = last.tail

	s.write(true, s.inode(root, func(core []byte) { binary.LittleEndian.PutUint16(core[2:], 0o40711) }))
	after, err := s.open()
	require.NoError(t, err)
	require.NotEqual(t, replayed, after.Describe().Notes)
	info, err := after.Stat(after.Root())
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o711, info.Mode)

	s.f.write(s.super.logOffset+ends.head*sector+sector+100, []byte{255}) // the record was not whole
	torn, err := s.open()
	require.NoError(t, err)
	require.Equal(t, replayed, torn.Describe().Notes)

	s.f.seal(s.super, s.super.logOffset+ends.head*sector)
	s.format = 2
	s.write(true)
	_, err = s.open()
	require.ErrorIs(t, err, filesystem.ErrUnsupported)
}
