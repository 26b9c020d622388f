package devicetest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/device"
)

// Op names a method of device.Writer.
type Op string

// The methods that can fail.
const (
	Read  Op = "ReadAt"
	Write Op = "WriteAt"
	Zero  Op = "Zero"
	Sync  Op = "Sync"
	Close Op = "Close"
)

// Faulty is a device whose calls fail as planned.
type Faulty struct {
	device.Writer

	mu    sync.Mutex
	plans map[Op]plan
	calls map[Op]int
	fired int
}

type plan struct {
	call int
	err  error
}

// NewFaulty wraps a device.
func NewFaulty(d device.Writer) *Faulty {
	return &Faulty{Writer: d, plans: map[Op]plan{}, calls: map[Op]int{}}
}

// Fail makes the given call of a method, counted from 0, return err without
// doing anything.
func (f *Faulty) Fail(op Op, call int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.plans[op] = plan{call: call, err: err}
}

// Calls is how often a method was called.
func (f *Faulty) Calls(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[op]
}

// Fired is how many planned faults have happened; a test asserts that all have.
func (f *Faulty) Fired() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.fired
}

func (f *Faulty) next(op Op) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.calls[op]
	f.calls[op]++
	if p, ok := f.plans[op]; ok && p.call == n {
		f.fired++
		return p.err
	}
	return nil
}

// ReadAt implements device.Reader.
func (f *Faulty) ReadAt(p []byte, off int64) (int, error) {
	if err := f.next(Read); err != nil {
		return 0, err
	}
	return f.Writer.ReadAt(p, off)
}

// WriteAt implements device.Writer.
func (f *Faulty) WriteAt(p []byte, off int64) (int, error) {
	if err := f.next(Write); err != nil {
		return 0, err
	}
	return f.Writer.WriteAt(p, off)
}

// Zero implements device.Writer.
func (f *Faulty) Zero(e block.Extent) error {
	if err := f.next(Zero); err != nil {
		return err
	}
	return f.Writer.Zero(e)
}

// Sync implements device.Writer.
func (f *Faulty) Sync() error {
	if err := f.next(Sync); err != nil {
		return err
	}
	return f.Writer.Sync()
}

// Close implements device.Reader.
func (f *Faulty) Close() error {
	if err := f.next(Close); err != nil {
		return err
	}
	return f.Writer.Close()
}

// Plain is a device that cannot zero by itself.
type Plain struct{ device.Writer }

// Zero implements device.Writer.
func (p Plain) Zero(e block.Extent) error {
	if err := e.CheckWithin(p.Size()); err != nil {
		return err
	}
	return fmt.Errorf("zero %s: %w", e, errors.ErrUnsupported)
}
