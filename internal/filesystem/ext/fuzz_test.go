package ext

import (
	"bytes"
	"compress/gzip"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/filesystem/filesystemtest"
	"github.com/blockmover/blockmover/internal/fuzztest"
)

// fastImage returns an image with fast commits, and their area.
func fastImage(t testing.TB) (image []byte, l *log, area []byte) {
	t.Helper()
	packed, err := os.Open("testdata/images/fast.gz")
	require.NoError(t, err)
	z, err := gzip.NewReader(packed)
	require.NoError(t, err)
	image, err = io.ReadAll(z)
	require.NoError(t, err)
	require.NoError(t, packed.Close())
	fsys, err := Open(bytes.NewReader(image), int64(len(image)))
	require.NoError(t, err)
	l, err = fsys.openLog()
	require.NoError(t, err)
	records, commits, err := l.fastRecords(l.sequence + 1) // after one transaction
	require.NoError(t, err)
	require.Positive(t, commits)
	for _, r := range records {
		area = le.AppendUint16(area, r.kind)
		area = le.AppendUint16(area, uint16(len(r.value)))
		area = append(area, r.value...)
	}
	return image, l, area
}

// applyAny applies records that no checksum protects, and reads everything.
func applyAny(t testing.TB, device io.ReaderAt, size int64, l *log, area []byte) {
	t.Helper()
	fsys, err := Open(device, size)
	require.NoError(t, err)
	var records []fastRecord
	for len(area) >= fastTagSize {
		r := fastRecord{kind: le.Uint16(area)}
		length := int(le.Uint16(area[2:]))
		if length > len(area)-fastTagSize || !l.fastLength(r.kind, length) {
			break
		}
		r.value = area[fastTagSize : fastTagSize+length]
		records = append(records, r)
		area = area[fastTagSize+length:]
	}
	fsys.fast = &fastCommits{inodes: map[uint32]*fastInode{}, directories: map[uint32]*fastDirectory{}}
	if fsys.applyFast(records) == nil {
		require.NotErrorIs(t, filesystemtest.Walk(fsys, 1000), filesystemtest.ErrContract)
	}
}

func FuzzFastCommits(f *testing.F) {
	image, l, area := fastImage(f)
	f.Add(area)
	f.Fuzz(func(t *testing.T, area []byte) {
		results := 1000<<12 + 64*uint64(len(area))
		fuzztest.Device(t, bytes.NewReader(image), results, func(r io.ReaderAt) { applyAny(t, r, int64(len(image)), l, area) })
	})
}

func TestDamagedFastCommits(t *testing.T) {
	image, l, area := fastImage(t)
	random := rand.New(rand.NewPCG(3, 3))
	for range 300 {
		damaged := bytes.Clone(area)
		for range 1 + random.IntN(20) {
			damaged[random.IntN(len(damaged))] = byte(random.Uint32())
		}
		applyAny(t, bytes.NewReader(image), int64(len(image)), l, damaged)
	}
}

// TestNotes: what is shown is not all that there was, and Describe says so.
func TestNotes(t *testing.T) {
	image, l, _ := fastImage(t)
	notes := func(change func(image []byte) []byte) []string {
		changed := change(bytes.Clone(image))
		fsys, err := Open(bytes.NewReader(changed), int64(len(changed)))
		require.NoError(t, err)
		return fsys.Describe().Notes
	}
	at := func(position uint32) int64 {
		for _, r := range l.runs {
			if uint64(position) < r.end() {
				return int64(r.physical+uint64(position)-r.logical) * l.dev.blockSize
			}
		}
		t.Fatalf("the journal has no block %d", position)
		return 0
	}

	whole := notes(func(image []byte) []byte { return image })
	require.Len(t, whole, 2)
	require.Contains(t, whole[0], "The journal was replayed: 1 transactions")
	require.Contains(t, whole[1], "fast commits of the journal were replayed")

	short := notes(func(image []byte) []byte { return image[:len(image)-100<<10] })
	require.Contains(t, short[len(short)-1], "cannot be read")

	none := notes(func(image []byte) []byte { image[at(0)] ^= 1; return image })
	require.Len(t, none, 1)
	require.Contains(t, none[0], "Changes that it had are not shown")

	features := notes(func(image []byte) []byte { image[at(l.last+1)+fastTagSize] = 1; return image })
	require.Len(t, features, 2)
	require.Contains(t, features[1], "The fast commits in the journal cannot be replayed")

	errors := notes(func(image []byte) []byte {
		// Where the journal has the superblock, it has precedence.
		image[at(0)] ^= 1
		image[superblockOffset+0x3a] |= stateErrors
		return image
	})
	require.Contains(t, errors[len(errors)-1], "marked as having errors")
}

// TestFlatten: the last change of a block counts.
func TestFlatten(t *testing.T) {
	change := func(first, length, physical uint64) run {
		return run{logical: first, length: length, physical: physical, state: data}
	}
	require.Empty(t, flatten(nil))
	require.Equal(t, []run{
		change(0, 2, 100), change(2, 3, 200), change(5, 1, 105), {logical: 6, length: 2}, change(8, 2, 108), change(20, 1, 7),
	}, flatten([]run{change(0, 10, 100), change(3, 1, 5), change(2, 3, 200), {logical: 6, length: 2}, change(20, 1, 7)}))
}

// TestChecksums has vectors of other implementations.
func TestChecksums(t *testing.T) {
	digits := []byte("123456789")
	require.Equal(t, ^uint32(0xe3069283), crc32c(^uint32(0), digits), "CRC-32/ISCSI")
	require.Equal(t, uint16(0x4b37), crc16(0xffff, digits), "CRC-16/MODBUS")
	require.Equal(t, ^uint32(0xfc891918), crc32be(^uint32(0), digits), "CRC-32/BZIP2")
}
