package xfs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/blockmover/blockmover/internal/filesystem"
	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

// fixture returns an image of testdata: version4 has forks of all formats, and version5 was in use, so its log has to be replayed.
func fixture(t testing.TB, name string) []byte {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".gz")
	require.NoError(t, err)
	defer f.Close() //nolint:errcheck // it was only read
	r, err := gzip.NewReader(f)
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, err)
	return b
}

// forged is an image in which some bytes differ, and whose checksums fit.
type forged struct {
	base    []byte
	sectors map[int64][]byte
}

func (f *forged) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(f.base)) {
		return 0, io.EOF
	}
	n := copy(p, f.base[off:])
	for at := off &^ 511; at < off+int64(n); at += 512 {
		if s, found := f.sectors[at]; found {
			if at >= off {
				copy(p[at-off:n], s)
			} else {
				copy(p[:n], s[off-at:])
			}
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *forged) read(off int64, n int) []byte {
	b := make([]byte, n)
	_, _ = f.ReadAt(b, off)
	return b
}

func (f *forged) write(off int64, b []byte) {
	for len(b) > 0 {
		at := off &^ 511
		s := f.read(at, 512)
		n := copy(s[off-at:], b)
		f.sectors[at] = s
		off, b = off+int64(n), b[n:]
	}
}

// seal makes the checksums around a byte fit, if there are any. Blocks have 1 KiB.
func (f *forged) seal(s *superblock, off int64) {
	le, be := binary.LittleEndian, binary.BigEndian
	if off >= s.logOffset && off < s.logOffset+s.logSectors*sector {
		l := &logReader{device: newDevice(f, int64(len(f.base))), super: s}
		at := (off - s.logOffset) / sector
		for back := int64(0); back < 600 && back <= at; back++ {
			head := f.read(s.logOffset+(at-back)*sector, sector)
			h, is := l.parseHeader(at-back, head)
			if !is {
				continue
			}
			if n := (h.headSectors + h.dataSectors()) * sector; n <= 1<<20 && h.length > 0 {
				b := f.read(s.logOffset+h.at*sector, int(n))
				clear(b[32:36])
				sum := crc32.Update(0, castagnoli, b[:328])
				for i := int64(1); i < h.headSectors; i++ {
					sum = crc32.Update(sum, castagnoli, b[i*sector:i*sector+260])
				}
				sum = crc32.Update(sum, castagnoli, b[h.headSectors*sector:h.headSectors*sector+h.length])
				f.write(s.logOffset+h.at*sector+32, le.AppendUint32(nil, sum))
			}
			return
		}
		return
	}
	sum := func(off int64, n, at int) {
		b := f.read(off, n)
		clear(b[at : at+4])
		f.write(off+int64(at), le.AppendUint32(nil, crc32.Checksum(b, castagnoli)))
	}
	block := off &^ (s.blockSize - 1)
	b := f.read(block, int(s.blockSize))
	switch be.Uint32(b) {
	case superblockMagic:
		sum(block, int(s.sectorSize), 224)
	case directoryBlockMagic5, directoryDataMagic5:
		sum(block, len(b), 4)
	case bmapMagic5:
		sum(block, len(b), 64)
	case symlinkMagic, remoteMagic:
		sum(block, len(b), 12)
	}
	if m := be.Uint16(b[8:]); m == leafMagic5 || m == nodeMagic5 {
		sum(block, len(b), 12)
	}
	for at := int64(0); at < s.blockSize; at += s.inodeSize {
		if be.Uint16(b[at:]) == inodeMagic && b[at+4] == 3 {
			sum(block+at, int(s.inodeSize), 100)
		}
	}
}

// targets are the offsets of metadata and of the log, where damage is worth the try.
func targets(t testing.TB, image []byte) (*superblock, []int64) {
	t.Helper()
	s, err := parseSuperblock(image, int64(len(image)))
	require.NoError(t, err)
	offsets := []int64{0}
	be := binary.BigEndian
	for off := int64(0); off < int64(len(image)); off += s.blockSize {
		b := image[off : off+s.blockSize]
		magic, da := be.Uint32(b), be.Uint16(b[8:])
		switch {
		case off >= s.logOffset && off < s.logOffset+s.logSectors*sector:
			if !bytes.Equal(b, make([]byte, len(b))) {
				offsets = append(offsets, off)
			}
		case be.Uint16(b) == inodeMagic, da == leafMagic5, da == nodeMagic5, da == leafMagic4, da == nodeMagic4:
			offsets = append(offsets, off)
		case magic == directoryBlockMagic4, magic == directoryDataMagic4, magic == directoryBlockMagic5, magic == directoryDataMagic5,
			magic == bmapMagic4, magic == bmapMagic5, magic == symlinkMagic, magic == remoteMagic:
			offsets = append(offsets, off)
		}
	}
	return s, offsets
}

// attack opens and walks an image in which bytes differ.
func attack(image []byte, s *superblock, offsets []int64, changes []byte, budget int) error {
	fsys, err := Open(forge(image, s, offsets, changes), int64(len(image)))
	if err != nil {
		return err
	}
	return filesystemtest.Walk(fsys, budget)
}

// forge changes bytes of an image. Each change has 6 bytes: which target, where in it, what, and how: one byte, or the
// first bytes of a number.
func forge(image []byte, s *superblock, offsets []int64, changes []byte) *forged {
	f := &forged{base: image, sectors: map[int64][]byte{}}
	for ; len(changes) >= 6; changes = changes[6:] {
		target := offsets[(int(changes[0])|int(changes[1])<<8)%len(offsets)]
		off := target + (int64(changes[2])|int64(changes[3])<<8)%s.blockSize
		n := 1 + int(changes[5]&3)
		f.write(off, bytes.Repeat(changes[4:5], n)[:min(int64(n), int64(len(image))-off)])
		if changes[5]&4 == 0 && s.v5 {
			f.seal(s, off)
		}
	}
	return f
}

// TestHostile reads images with damage that checksums do not tell.
func TestHostile(t *testing.T) {
	for _, name := range []string{"version4", "version5"} {
		t.Run(name, func(t *testing.T) {
			image := fixture(t, name)
			s, offsets := targets(t, image)
			require.NoError(t, attack(image, s, offsets, nil, 1e6), "without damage")
			random := rand.New(rand.NewPCG(1, 2))
			failed := 0
			const rounds = 100
			for range rounds {
				changes := make([]byte, 6*(1+random.IntN(30)))
				for i := range changes {
					changes[i] = byte(random.Uint32())
				}
				err := attack(image, s, offsets, changes, 3000)
				require.NotErrorIs(t, err, filesystemtest.ErrContract)
				if err != nil {
					failed++
				}
			}
			t.Logf("%d of %d images had an error that was found", failed, rounds)
			require.Greater(t, failed, rounds/4)
			filesystemtest.Damage(t, image, int64(len(image)), 20, func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) { return Open(r, size) })
		})
	}
}

func FuzzReader(f *testing.F) {
	type kind struct {
		image   []byte
		super   *superblock
		offsets []int64
	}
	var kinds []kind
	for _, name := range []string{"version4", "version5"} {
		image := fixture(f, name)
		s, offsets := targets(f, image)
		kinds = append(kinds, kind{image, s, offsets})
	}
	f.Add(false, []byte{})
	f.Add(true, []byte{0, 0, 0, 0, 88, 0})
	f.Add(true, []byte{9, 0, 82, 0, 1, 0, 200, 0, 4, 0, 255, 1})
	f.Fuzz(func(t *testing.T, v5 bool, changes []byte) {
		k := kinds[btoi(v5)]
		device := forge(k.image, k.super, k.offsets, changes[:min(len(changes), 600)])
		filesystemtest.Hostile(t, device, int64(len(k.image)), 300, func(r io.ReaderAt, size int64) (filesystem.FileSystem, error) {
			return Open(r, size)
		})
	})
}

// FuzzTransactions takes any bytes for the operations of a log record.
func FuzzTransactions(f *testing.F) {
	image := fixture(f, "version5")
	s, err := parseSuperblock(image, int64(len(image)))
	require.NoError(f, err)
	l := &logReader{device: newDevice(bytes.NewReader(image), int64(len(image))), super: s}
	ends, err := l.ends()
	require.NoError(f, err)
	require.NoError(f, l.records(ends.tail, ends.head, func(_ recordHeader, data []byte) error {
		if len(data) < 8<<10 {
			f.Add(data)
		}
		return nil
	}))
	f.Fuzz(func(t *testing.T, data []byte) {
		r := &replayer{super: s, log: l, overlay: newOverlay(), open: map[uint32]*transaction{}, intents: map[intentKey]intent{}}
		fuzztest.Document(t, len(data), func() {
			err := r.record(recordHeader{format: formatLittleEndian, uuid: s.uuid, operations: 1000, lsn: 1 << 32}, data)
			if len(data) < 1000*operationHeader {
				require.Error(t, err)
			}
			r.noteUnfinished()
		})
		fsys := &FileSystem{device: l.device, super: s, overlay: r.overlay}
		for off := range r.overlay.inodes {
			_, _, _ = fsys.inodeBytes(off)
		}
		for off := range r.overlay.chunks {
			_, _, _ = fsys.read(off, chunkSize)
		}
	})
}

// TestConcurrent reads one file system from many sides. Run it with -race.
func TestConcurrent(t *testing.T) {
	image := fixture(t, "version5")
	fsys, err := Open(bytes.NewReader(image), int64(len(image)))
	require.NoError(t, err)
	var group errgroup.Group
	for range 8 {
		group.Go(func() error { return filesystemtest.Walk(fsys, 1e6) })
	}
	require.NoError(t, group.Wait())
}

// TestDamagedBlock lists what is in the other blocks of a directory.
func TestDamagedBlock(t *testing.T) {
	f := &forged{base: fixture(t, "version5"), sectors: map[int64][]byte{}}
	fsys, err := Open(f, int64(len(f.base)))
	require.NoError(t, err)
	id := filesystemtest.Lookup(t, fsys, "crowd")
	count := func(fsys *FileSystem) (n int, last error) {
		for _, err := range fsys.ReadDir(id) {
			if last = err; err == nil {
				n++
			}
		}
		return n, last
	}
	whole, err := count(fsys)
	require.NoError(t, err)
	n, err := fsys.inode(uint64(id))
	require.NoError(t, err)
	for e, err := range fsys.extents(n, &n.data, 0) {
		require.NoError(t, err)
		f.write(e.device, []byte("none"))
		delete(fsys.overlay.chunks, e.device)
		break
	}
	fsys.device = newDevice(f, int64(len(f.base)))
	rest, err := count(fsys)
	require.ErrorIs(t, err, filesystem.ErrDamaged)
	require.Greater(t, rest, whole/2)
	require.Less(t, rest, whole)
}
