package repositorytest

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/repository"
)

// OpenReader implements repository.Store.
func (m *Memory) OpenReader(_ context.Context, id repository.SnapshotID) (repository.VolumeReader, error) {
	_, v, err := m.find(id)
	if err != nil {
		return nil, err
	}
	return memoryReader{v}, nil
}

// Compare implements repository.Store.
func (m *Memory) Compare(_ context.Context, a, b repository.SnapshotID, emit func(block.Extent) error) error {
	_, x, err := m.find(a)
	if err != nil {
		return err
	}
	_, y, err := m.find(b)
	if err != nil {
		return err
	}
	end, size := min(x.meta.Size, y.meta.Size), x.meta.ChunkSize
	if size != y.meta.ChunkSize {
		return emit(block.Extent{Length: end})
	}
	var last block.Extent
	for off := int64(0); off < end; off += size {
		if x.chunks[off/size] == y.chunks[off/size] {
			continue
		}
		if off > last.End() || last.Length == 0 {
			if last.Length > 0 {
				if err := emit(last); err != nil {
					return err
				}
			}
			last.Offset = off
		}
		last.Length = min(off+size, end) - last.Offset
	}
	if last.Length == 0 {
		return nil
	}
	return emit(last)
}

type memoryReader struct{ *volume }

func (r memoryReader) Meta() repository.Meta { return r.meta }

func (r memoryReader) Close() error { return nil }

func (r memoryReader) IsZero(_ context.Context, chunk int64) (bool, error) {
	g, err := block.NewGeometry(r.meta.Size, r.meta.ChunkSize)
	if err == nil {
		err = g.CheckChunk(chunk)
	}
	_, data := r.chunks[chunk]
	return !data, err
}

// ReadInOrder implements repository.VolumeReader.
func (r memoryReader) ReadInOrder() {}

// Matches implements repository.VolumeReader.
func (r memoryReader) Matches(ctx context.Context, chunk int64, data []byte) (bool, error) {
	zero, err := r.IsZero(ctx, chunk)
	switch {
	case err != nil:
		return false, err
	case int64(len(data)) != r.meta.ChunkSize:
		return false, fmt.Errorf("compare: %d bytes, want %d", len(data), r.meta.ChunkSize)
	case zero:
		return block.IsZero(data), nil
	}
	return r.chunks[chunk] == string(data), nil
}

func (r memoryReader) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, errors.New("read image: negative offset")
	}
	n := 0
	for n < len(p) && off < r.meta.Size {
		within := off % r.meta.ChunkSize
		part := p[n:]
		part = part[:min(int64(len(part)), r.meta.ChunkSize-within, r.meta.Size-off)]
		if data, ok := r.chunks[off/r.meta.ChunkSize]; ok {
			copy(part, data[within:])
		} else {
			clear(part)
		}
		n += len(part)
		off += int64(len(part))
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}
