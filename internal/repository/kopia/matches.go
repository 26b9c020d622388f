package kopia

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/kopia/kopia/repo"

	"github.com/blockmover/blockmover/internal/block"
)

// comparer finds the content IDs of bytes. kopia keeps its keyed hash to itself,
// but a content that is written and exists already costs no more than the hash.
// What does not exist stays in the session, which is never flushed.
type comparer struct {
	mu      sync.Mutex
	objects *objectWriter
}

// writer opens the session with the first question.
func (c *comparer) writer(ctx context.Context, rep repo.Repository) (*objectWriter, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objects == nil {
		_, session, err := rep.NewWriter(ctx, repo.WriteSessionOptions{Purpose: "Blockmover compare"})
		if err != nil {
			return nil, err
		}
		c.objects = newObjectWriter(rep, session)
	}
	return c.objects, nil
}

func (c *comparer) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.objects == nil {
		return nil
	}
	err := c.objects.w.Close(context.Background())
	c.objects = nil
	return err
}

// Matches implements repository.VolumeReader.
func (r *reader) Matches(ctx context.Context, chunk int64, data []byte) (bool, error) {
	same, err := r.matches(ctx, chunk, data)
	if err != nil {
		return false, fmt.Errorf("compare chunk %d: %w", chunk, err)
	}
	return same, nil
}

func (r *reader) matches(ctx context.Context, chunk int64, data []byte) (bool, error) {
	if err := r.layout.CheckChunk(chunk); err != nil {
		return false, err
	}
	if int64(len(data)) != r.layout.ChunkSize() {
		return false, fmt.Errorf("%d bytes, want %d", len(data), r.layout.ChunkSize())
	}
	entries, err := r.chunk(ctx, chunk)
	if err != nil {
		return false, err
	}
	base := entries[0].Start
	for _, e := range entries {
		same, err := r.matchesEntry(ctx, e, data[e.Start-base:][:e.Length])
		if err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

func (r *reader) matchesEntry(ctx context.Context, e entry, data []byte) (bool, error) {
	_, compressed, direct := e.Object.ContentID()
	switch {
	case r.zero[e.Object]:
		return block.IsZero(data), nil
	case !direct:
		return false, corrupt(errors.New("entry is not a content"))
	case compressed:
		// In kopia's first formats the ID is that of the compressed bytes, and another
		// version of the compressor makes others.
		stored := make([]byte, len(data))
		if err := r.readContent(ctx, stored, 0, e); err != nil {
			return false, err
		}
		return bytes.Equal(stored, data), nil
	}
	objects, err := r.comparer.writer(ctx, r.rep)
	if err != nil {
		return false, err
	}
	id, _, err := objects.write(ctx, "", data)
	return id == e.Object, err
}
