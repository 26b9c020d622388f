package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMetadataOfManyVolumes: partitions of a hostile disk may all have the same physical volume. What is kept of their
// metadata has one bound.
func TestMetadataOfManyVolumes(t *testing.T) {
	const start, area, length = 2048 * sector, 4096, 4 << 20
	text := []byte("g { id = \"1\" seqno = 1 extent_size = 8192 # " + strings.Repeat("x", 3<<20) + "\n}")
	le := binary.LittleEndian
	image := make([]byte, 8<<20)
	for i := range 4 {
		e := image[446+16*i:]
		e[4] = 0x8e
		le.PutUint32(e[8:], 2048)
		le.PutUint32(e[12:], 12288)
	}
	image[510], image[511] = 0x55, 0xaa

	label := image[start+sector:][:sector]
	copy(label, "LABELONE")
	le.PutUint64(label[8:], 1)
	le.PutUint32(label[20:], 32)
	copy(label[24:], "LVM2 001")
	le.PutUint64(label[32+40+16:], area)
	le.PutUint64(label[32+40+24:], length)
	le.PutUint32(label[16:], sumOf(label[20:]))

	h := image[start+area:][:headerSize]
	copy(h[4:], headerMagic)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], area)
	le.PutUint64(h[32:], length)
	le.PutUint64(h[40:], headerSize)
	le.PutUint64(h[48:], uint64(len(text)))
	le.PutUint32(h[56:], sumOf(text))
	le.PutUint32(h, sumOf(h[4:]))
	copy(image[start+area+headerSize:], text)

	parts, err := Find(bytes.NewReader(image), int64(len(image)), func(io.ReaderAt, int64) (bool, error) { return false, nil })
	require.NoError(t, err)
	require.Len(t, parts, 3, fmt.Sprint(parts))
	require.Contains(t, parts[0].Reason, "the metadata of LVM has more than 8388608 bytes")
}
