package fuzztest_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/fuzztest"
)

// verdict is a test that only says whether it has failed.
type verdict struct {
	testing.TB
	failed string
}

func (v *verdict) Helper() {}

func (v *verdict) Fatalf(format string, args ...any) { v.failed = fmt.Sprintf(format, args...) }

var sink []byte

func TestDocument(t *testing.T) {
	v := &verdict{TB: t}
	fuzztest.Document(v, 100, func() { sink = make([]byte, 1<<20) })
	require.Empty(t, v.failed)
	fuzztest.Document(v, 1<<20, func() { sink = make([]byte, 64<<20) })
	require.Empty(t, v.failed, "its bytes justify it")
	fuzztest.Document(v, 100, func() { sink = make([]byte, 64<<20) })
	require.Contains(t, v.failed, "a document of 100 bytes")
	v.failed = ""
	fuzztest.Document(v, 100, func() {
		for range 64 {
			sink = make([]byte, 1<<20)
		}
	})
	require.Contains(t, v.failed, "a document of 100 bytes", "what is free again counts, too")
}

func TestDevice(t *testing.T) {
	device := bytes.NewReader(make([]byte, 4<<20))
	read := func(take, n int) func(io.ReaderAt) {
		return func(r io.ReaderAt) {
			sink = make([]byte, take)
			_, err := r.ReadAt(sink[:n], 0)
			require.NoError(t, err)
		}
	}
	v := &verdict{TB: t}
	fuzztest.Device(v, device, 0, read(4<<20, 4<<20))
	fuzztest.Device(v, device, 0, read(64<<20, 4<<20))
	fuzztest.Device(v, device, 64<<20, read(64<<20, 512))
	require.Empty(t, v.failed)
	fuzztest.Device(v, device, 0, read(64<<20, 512))
	require.Contains(t, v.failed, "of which it has read 512 bytes")
}
