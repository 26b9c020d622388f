package disk

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// requireSound: parts have names of their own, and either content or a reason why not.
func requireSound(t *testing.T, parts []Part, size int64) {
	t.Helper()
	names := map[string]bool{}
	for _, p := range parts {
		require.NotEmpty(t, p.Name)
		require.False(t, names[p.Name], "there are two parts %q", p.Name)
		names[p.Name] = true
		require.Equal(t, p.Reason == "", p.Content != nil, p.Name)
		require.GreaterOrEqual(t, p.Size, int64(0), p.Name)
		if p.Content == nil {
			continue
		}
		require.LessOrEqual(t, p.Size, size, p.Name)
		n, err := p.Content.ReadAt(make([]byte, 100), max(0, p.Size-50))
		if err == nil || errors.Is(err, io.EOF) {
			require.LessOrEqual(t, int64(n), p.Size, p.Name)
		}
	}
}

func find(t *testing.T, image []byte) {
	t.Helper()
	var parts []Part
	var err error
	fuzztest.Device(t, bytes.NewReader(image), 0, func(r io.ReaderAt) {
		parts, err = Find(r, int64(len(image)), func(io.ReaderAt, int64) (bool, error) { return false, nil })
	})
	if err != nil {
		require.ErrorIs(t, err, ErrDamaged)
		return
	}
	requireSound(t, parts, int64(len(image))) // a table may be empty
}

func FuzzFind(f *testing.F) {
	b := make([]byte, 8<<10)
	b[510], b[511] = 0x55, 0xaa
	f.Add(b)
	copy(b[512:], "EFI PART")
	f.Add(bytes.Clone(b))
	copy(b[512:], "LABELONE")
	copy(b[512+24:], "LVM2 001")
	f.Add(b)
	f.Fuzz(find)
}

// FuzzGPT takes any bytes for the fields of a GPT and for its entries. The checksums fit.
func FuzzGPT(f *testing.F) {
	const blocks = 64
	le := binary.LittleEndian
	entries := make([]byte, 256)
	for i, e := range [][]byte{entries[:128], entries[128:]} {
		e[0] = 1
		le.PutUint64(e[32:], uint64(10+20*i))
		le.PutUint64(e[40:], uint64(29+20*i))
		copy(e[56:], "d\x00a\x00t\x00a\x00")
	}
	f.Add(uint64(2), uint32(2), uint32(128), entries)
	f.Add(uint64(1<<63), uint32(1<<31), uint32(1<<31), entries)
	f.Add(uint64(63), uint32(8), uint32(256), entries[:100])
	f.Fuzz(func(t *testing.T, start uint64, count, size uint32, entries []byte) {
		image := make([]byte, blocks*sector)
		image[446+4] = 0xee
		le.PutUint32(image[446+8:], 1)
		le.PutUint32(image[446+12:], blocks-1)
		image[510], image[511] = 0x55, 0xaa
		table := uint64(0)
		if start < blocks {
			copy(image[start*sector:], entries)
			table = min(uint64(count)*uint64(size), (blocks-start)*sector)
		}
		h := image[sector:][:sector]
		copy(h, "EFI PART")
		le.PutUint32(h[12:], 92)
		le.PutUint64(h[24:], 1)
		le.PutUint64(h[72:], start)
		le.PutUint32(h[80:], count)
		le.PutUint32(h[84:], size)
		if table > 0 && start > 1 {
			le.PutUint32(h[88:], crc32.ChecksumIEEE(image[start*sector:][:table]))
		}
		clear(h[16:20])
		le.PutUint32(h[16:], crc32.ChecksumIEEE(h[:92]))
		find(t, image)
	})
}

// FuzzLVM takes any bytes for the header of a physical volume, for the fields of its metadata, and for their text. The checksums fit.
func FuzzLVM(f *testing.F) {
	const area, length = 8 * sector, 64 * sector
	le := binary.LittleEndian
	header := make([]byte, 40+4*16)
	copy(header, "0123456789abcdef0123456789abcdef")
	le.PutUint64(header[40+16:], area)
	le.PutUint64(header[40+24:], length)
	text := []byte(`g { id = "1" seqno = 1 extent_size = 8
physical_volumes { pv0 { id = "0123456789abcdef0123456789abcdef" pe_start = 100 pe_count = 4 } }
logical_volumes { l { status = ["VISIBLE"] segment1 { start_extent = 0 extent_count = 2 type = "striped" stripe_count = 1 stripes = ["pv0", 1] } } } }`)
	f.Add(header, uint64(headerSize), uint64(len(text)), text)
	f.Add(header, uint64(length-100), uint64(len(text)), text)
	f.Add(header, uint64(1<<63), uint64(1<<63), []byte("g {}"))
	f.Fuzz(func(t *testing.T, header []byte, at, n uint64, text []byte) {
		image := make([]byte, 128*sector)
		label := image[sector:][:sector]
		copy(label[32:], header)
		copy(label, "LABELONE")
		le.PutUint64(label[8:], 1)
		le.PutUint32(label[20:], 32)
		copy(label[24:], "LVM2 001")
		le.PutUint32(label[16:], sumOf(label[20:]))

		h := image[area:][:headerSize]
		copy(h[4:], headerMagic)
		le.PutUint32(h[20:], 1)
		le.PutUint64(h[24:], area)
		le.PutUint64(h[32:], length)
		le.PutUint64(h[40:], at)
		le.PutUint64(h[48:], n)
		// The area is a ring, behind its header.
		if at >= headerSize && at < length {
			first := copy(image[area+at:area+length], text)
			copy(image[area+headerSize:area+length], text[first:])
			if n <= length-headerSize {
				whole := bytes.Clone(image[area+at : area+min(at+n, length)])
				whole = append(whole, image[area+headerSize:][:n-uint64(len(whole))]...)
				le.PutUint32(h[56:], sumOf(whole))
			}
		}
		le.PutUint32(h, sumOf(h[4:]))
		find(t, image)
	})
}
