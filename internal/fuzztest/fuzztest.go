// Package fuzztest has what fuzz targets share: a bound on the memory that reading a hostile input
// takes. Only tests import it.
//
// What counts is all that a call allocates, and not what it holds at a time: an allocation of which
// the garbage collector frees the most is no less of an attack on a machine.
//
// The package is pure.
package fuzztest

import (
	"io"
	"runtime/metrics"
	"sync/atomic"
	"testing"
)

const (
	// slack is what any call may allocate: buffers of fixed size, error texts, maps that begin with
	// room. The runtime counts small allocations only when it takes new memory for them, so what was
	// allocated before a call, up to about 2 MiB, may be counted with it.
	slack = 8 << 20

	// perByte is what each byte of a document may cost. The dearest are lists in JSON: "{}," is a
	// struct, and lists double as they grow.
	perByte = 256

	// perByteRead is what each byte that was read of a device may cost: the byte itself, an entry
	// made of it, and what the entries are gathered in.
	perByteRead = 16
)

// Document fails the test if a call allocates more than a document of size bytes justifies.
func Document(t testing.TB, size int, call func()) {
	t.Helper()
	check(t, allocated(call), slack+perByte*uint64(size), "a document of", uint64(size))
}

// Device calls read with a device that counts what is read of it. It fails the test if read allocates
// more than that justifies, and than results, which is for what a reader makes of bytes that it has
// read before. A device may be sparse, so its size justifies nothing.
func Device(t testing.TB, device io.ReaderAt, results uint64, read func(io.ReaderAt)) {
	t.Helper()
	c := &counted{device: device}
	got := allocated(func() { read(c) })
	n := c.read.Load()
	check(t, got, slack+results+perByteRead*n, "a device of which it has read", n)
}

func check(t testing.TB, got, most uint64, what string, size uint64) {
	t.Helper()
	if got > most {
		t.Fatalf("%d bytes were allocated for %s %d bytes, want at most %d", got, what, size, most)
	}
}

// allocated returns how many bytes a call allocates. A worker of the fuzzing engine runs one call at a
// time, and nothing beside it.
func allocated(call func()) uint64 {
	before := total()
	call()
	return total() - before
}

func total() uint64 {
	sample := [1]metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	metrics.Read(sample[:])
	return sample[0].Value.Uint64()
}

type counted struct {
	device io.ReaderAt
	read   atomic.Uint64
}

// ReadAt implements io.ReaderAt.
func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.device.ReadAt(p, off)
	c.read.Add(uint64(max(n, 0)))
	return n, err //nolint:wrapcheck // an io.ReaderAt passes io.EOF on as it is
}
