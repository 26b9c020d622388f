package kopia

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/hashing"

	"github.com/blockmover/blockmover/internal/block"
)

// Matches implements repository.VolumeReader.
func (r *reader) Matches(ctx context.Context, chunk int64, data []byte) (bool, error) {
	same, err := r.matches(ctx, chunk, data)
	if err != nil {
		return false, fmt.Errorf("compare chunk %d: %w", chunk, mark(err))
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
	stored, compressed, direct := e.Object.ContentID()
	switch {
	case r.zero[e.Object]:
		return block.IsZero(data), nil
	case !direct:
		return false, corrupt(errors.New("entry is not a content"))
	case compressed:
		// In kopia's first formats the ID is that of the compressed bytes, and another
		// version of the compressor makes others.
		held := make([]byte, len(data))
		if err := r.readContent(ctx, held, 0, e); err != nil {
			return false, err
		}
		return bytes.Equal(held, data), nil
	}
	id, err := contentIDOf(r.rep, data)
	return id == stored, err
}

// contentIDOf is the ID that a repository gives bytes: their keyed hash.
func contentIDOf(rep repo.Repository, data []byte) (content.ID, error) {
	direct, ok := rep.(repo.DirectRepository)
	if !ok {
		return content.EmptyID, errors.New("the repository does not tell its hash function")
	}
	hash := direct.ContentReader().ContentFormat().HashFunc()
	input := inputOf(hash)
	input.Slices = [][]byte{data}
	id, err := content.IDFromHash("", hash(make([]byte, 0, hashing.MaxHashSize), input))
	if err != nil {
		return content.EmptyID, fmt.Errorf("derive content ID: %w", err)
	}
	return id, nil
}

// inputOf is an empty value of the type that a hash function takes: one of
// kopia's internal ones, which has no name here.
func inputOf[B any](func([]byte, B) []byte) (empty B) { return empty }
