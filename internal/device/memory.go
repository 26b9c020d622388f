package device

import (
	"fmt"
	"sync"

	"github.com/blockmover/blockmover/internal/block"
)

// Memory is a device in memory.
type Memory struct {
	blockSize int

	mu   sync.RWMutex
	data []byte
}

var _ Writer = (*Memory)(nil)

// NewMemory returns a device that holds data. The device owns data from then on.
func NewMemory(data []byte, blockSize int) *Memory {
	return &Memory{data: data, blockSize: blockSize}
}

// Size implements Reader.
func (m *Memory) Size() int64 { return int64(len(m.data)) }

// BlockSize implements Reader.
func (m *Memory) BlockSize() int { return m.blockSize }

// ReadAt implements Reader.
func (m *Memory) ReadAt(p []byte, off int64) (int, error) {
	if err := CheckRange(m.Size(), p, off); err != nil {
		return 0, fmt.Errorf("read: %w", err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	return copy(p, m.data[off:]), nil
}

// WriteAt implements Writer.
func (m *Memory) WriteAt(p []byte, off int64) (int, error) {
	if err := CheckRange(m.Size(), p, off); err != nil {
		return 0, fmt.Errorf("write: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.data[off:], p), nil
}

// Zero implements Writer.
func (m *Memory) Zero(e block.Extent) error {
	if err := e.CheckWithin(m.Size()); err != nil {
		return fmt.Errorf("zero: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	clear(m.data[e.Offset:e.End()])
	return nil
}

// Sync implements Writer.
func (m *Memory) Sync() error { return nil }

// Close implements Reader.
func (m *Memory) Close() error { return nil }
