package repositorytest

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/repository"
)

func (s suite) advancing(t *testing.T) {
	t.Helper()
	const n = 30
	data := random(1, n*chunk)
	w, err := s.NewWriter(t.Context(), meta(n*chunk, instant), options(""))
	require.NoError(t, err)
	for c := range int64(n) {
		// Later chunks may be there already; promises may come late and twice.
		if c%2 == 0 {
			require.NoError(t, w.Put(t.Context(), c+1, padded(data, c+1)))
			require.NoError(t, w.Put(t.Context(), c, padded(data, c)))
		}
		require.NoError(t, w.Advance(t.Context(), c))
		require.NoError(t, w.Advance(t.Context(), c/2))
	}
	require.NoError(t, w.Advance(t.Context(), n))
	id, _ := commit(t, w)
	s.holds(t, id, data)

	w, err = s.NewWriter(t.Context(), meta(n*chunk, instant), options(""))
	require.NoError(t, err)
	require.NoError(t, w.Advance(t.Context(), 8))
	require.Error(t, w.Put(t.Context(), 7, padded(data, 7)), "a promise was broken")
	end(t, w, repository.Discard)
}

// begin makes a writer that saves a checkpoint after every chunk.
func (s suite) begin(t *testing.T, m repository.Meta, o repository.WriterOptions) repository.VolumeWriter {
	t.Helper()
	o.CheckpointInterval = 1
	w, err := s.NewWriter(t.Context(), m, o)
	require.NoError(t, err)
	return w
}

// part puts all chunks from where the writer begins to the given one.
func part(t *testing.T, w repository.VolumeWriter, data []byte, end int64) {
	t.Helper()
	for c := w.Resumed(); c < end; c++ {
		require.NoError(t, w.Put(t.Context(), c, padded(data, c)))
		require.NoError(t, w.Advance(t.Context(), c+1))
	}
}

// resuming: a run that is not discarded is continued by the next one of the same operation.
func (s suite) resuming(t *testing.T) {
	t.Helper()
	const n = 30
	m := meta(n*chunk-100, instant)
	base := random(1, m.Size)
	parent := s.backup(t, "op-1", m, "", base, chunks(n))
	data := random(2, m.Size)
	for _, from := range []repository.SnapshotID{"", parent} {
		o := options(from)
		o.Operation = "op-on-" + string(from)
		w := s.begin(t, m, o)
		require.Zero(t, w.Resumed())
		part(t, w, data, 13)
		end(t, w, repository.Suspend)
		end(t, w, repository.Discard) // comes too late
		require.Error(t, w.Put(t.Context(), 20, padded(data, 20)))

		w = s.begin(t, m, o)
		require.Equal(t, int64(12), w.Resumed())
		require.NoError(t, w.Put(t.Context(), 20, padded(data, 20)))
		require.Error(t, w.Put(t.Context(), 11, padded(data, 11)), "finished already")
		end(t, w, repository.Suspend)

		later := m
		later.SnapshotTime = instant.Add(time.Hour)
		w = s.begin(t, later, o)
		require.Equal(t, int64(12), w.Resumed(), "the time of a run does not matter")
		require.Equal(t, later.SnapshotTime, w.Meta().SnapshotTime)
		part(t, w, data, n-1)
		_ = s.begin(t, m, o) // a run that is killed does not even suspend

		w = s.begin(t, m, o)
		require.Equal(t, int64(28), w.Resumed())
		part(t, w, data, n)
		id, _ := commit(t, w)
		s.holds(t, id, data)
	}
}

// notResuming: a run is continued by no other than its own.
func (s suite) notResuming(t *testing.T) {
	t.Helper()
	const n = 30
	m := meta(n*chunk-100, instant)
	parent := s.backup(t, "op-1", m, "", random(1, m.Size), chunks(n))
	data := random(2, m.Size)
	o := options(parent)
	w := s.begin(t, m, o)
	part(t, w, data, 13)
	end(t, w, repository.Suspend)
	other := o
	other.Operation = "other"
	w = s.begin(t, m, other)
	require.Zero(t, w.Resumed(), "another operation")
	end(t, w, repository.Discard)
	require.Equal(t, int64(12), s.begin(t, m, o).Resumed(), "it is still there")
	refuted := o
	refuted.Basis = "device"
	w = s.begin(t, m, refuted)
	require.Zero(t, w.Resumed(), "another basis")
	end(t, w, repository.Discard)
	changed := m
	changed.SnapshotHandle = "other"
	w = s.begin(t, changed, o)
	require.Zero(t, w.Resumed(), "another content of the device")
	part(t, w, data, 13)
	end(t, w, repository.Discard)
	require.Zero(t, s.begin(t, changed, o).Resumed(), "nothing is left of what is discarded")
	changed.SnapshotHandle = ""
	w = s.begin(t, changed, o)
	part(t, w, data, 13)
	end(t, w, repository.Suspend)
	require.Zero(t, s.begin(t, changed, o).Resumed(), "nobody knows what the device holds")
}

func (s suite) misuse(t *testing.T) {
	t.Helper()
	const size = 2*chunk + 1
	zeros := make([]byte, chunk)
	for name, wrong := range map[string]func(context.Context, repository.VolumeWriter) error{
		"nothing":   func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 0, nil) },
		"too short": func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 0, zeros[1:]) },
		"not whole": func(ctx context.Context, w repository.VolumeWriter) error {
			return w.Put(ctx, 0, make([]byte, chunk+1))
		},
		"over the end": func(ctx context.Context, w repository.VolumeWriter) error {
			return w.Put(ctx, 2, make([]byte, 2*chunk))
		},
		"twice, of two": func(ctx context.Context, w repository.VolumeWriter) error {
			return w.Put(ctx, 0, make([]byte, 2*chunk))
		},
		"before the start": func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, -1, zeros) },
		"after the end":    func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 3, zeros) },
		"twice":            func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 1, zeros) },
		"padding":          func(ctx context.Context, w repository.VolumeWriter) error { return w.Put(ctx, 2, random(1, chunk)) },
		"advance too far":  func(ctx context.Context, w repository.VolumeWriter) error { return w.Advance(ctx, 4) },
	} {
		w, err := s.NewWriter(t.Context(), meta(size, instant), options(""))
		require.NoError(t, err, name)
		require.NoError(t, w.Put(t.Context(), 1, zeros), name)
		require.Error(t, wrong(t.Context(), w), name)
		require.Error(t, w.Put(t.Context(), 0, zeros), "%s: after an error", name)
		_, _, err = w.Commit(t.Context(), named)
		require.Error(t, err, "%s: after an error", name)
		end(t, w, repository.Discard)
		end(t, w, repository.Discard)
	}
	w, err := s.NewWriter(t.Context(), meta(size, instant), options(""))
	require.NoError(t, err)
	end(t, w, repository.Discard)
	require.Error(t, w.Put(t.Context(), 0, zeros))
	_, _, err = w.Commit(t.Context(), named)
	require.Error(t, err)

	w, err = s.NewWriter(t.Context(), meta(size, instant), options(""))
	require.NoError(t, err)
	_, _, err = w.Commit(t.Context(), named)
	require.NoError(t, err)
	require.Error(t, w.Put(t.Context(), 0, zeros))
	_, _, err = w.Commit(t.Context(), named)
	require.Error(t, err)

	for _, o := range []repository.WriterOptions{{Volume: shopDB}, {Operation: "op"}} { // no operation, no volume
		_, err := s.NewWriter(t.Context(), meta(size, instant), o)
		require.Error(t, err, "%+v", o)
	}
	for _, m := range []repository.Meta{meta(0, instant), meta(-1, instant), {Size: 1, ChunkSize: 5000, SegmentSize: 10000}} {
		_, err := s.NewWriter(t.Context(), m, options(""))
		require.Error(t, err)
	}
	list, err := s.List(t.Context(), shopDB)
	require.NoError(t, err)
	require.Len(t, list, 1, "what is not committed is not seen")
}
