package kopia

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/object"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/device"
	"github.com/blockmover/blockmover/internal/repository"
)

const benchSize = 64 << 20

// benchData is random, or random letters of an alphabet of 16.
func benchData(text bool) []byte {
	data := random(benchSize)
	if text {
		for i := range data {
			data[i] = 'a' + data[i]&15
		}
	}
	return data
}

func BenchmarkBackup(b *testing.B) {
	for _, c := range []struct {
		name        string
		data        []byte
		compression repository.Compression
	}{
		{"random", benchData(false), repository.S2},
		{"text", benchData(true), repository.S2},
		{"text, zstd", benchData(true), repository.Zstd},
		{"text, not compressed", benchData(true), repository.NoCompression},
		{"zeros", make([]byte, benchSize), repository.S2},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.SetBytes(benchSize)
			for b.Loop() {
				b.StopTimer()
				s := newStore(b)
				b.StartTimer()
				benchBackup(b, s, c.data, c.compression)
			}
		})
	}
}

func benchBackup(b *testing.B, s *Store, data []byte, c repository.Compression) repository.SnapshotID {
	b.Helper()
	all, err := block.NewBitmap(benchSize, block.PageSize(benchSize))
	require.NoError(b, err)
	all.SetAll()
	meta := testMeta(benchSize, testTime)
	meta.ChunkSize, meta.SegmentSize = 0, 0
	o := nextOperation("")
	o.Compression = c
	w, err := s.NewWriter(b.Context(), meta, o)
	require.NoError(b, err)
	_, err = datapath.Backup(b.Context(), device.NewMemory(data, 4096), all, w, datapath.Options{})
	require.NoError(b, err)
	id, _ := commit(b, w)
	return id
}

func BenchmarkRestore(b *testing.B) {
	for _, c := range []struct {
		name string
		data []byte
	}{{"random", benchData(false)}, {"text", benchData(true)}, {"zeros", make([]byte, benchSize)}} {
		b.Run(c.name, func(b *testing.B) {
			s := newStore(b)
			id := benchBackup(b, s, c.data, repository.DefaultCompression)
			target := device.NewMemory(make([]byte, benchSize), 4096)
			b.SetBytes(benchSize)
			for b.Loop() {
				r, err := s.OpenReader(b.Context(), id)
				require.NoError(b, err)
				_, err = datapath.Restore(b.Context(), r, target, datapath.Options{})
				require.NoError(b, err)
			}
		})
	}
}

func BenchmarkIndex(b *testing.B) {
	var ids []object.ID
	for range 1024 {
		var hash [16]byte
		for i := range hash {
			hash[i] = byte(rand.Uint32())
		}
		cid, err := content.IDFromHash("", hash[:])
		require.NoError(b, err)
		ids = append(ids, object.DirectObjectID(cid))
	}
	const chunk = 64 << 10
	var text []byte
	render := func() {
		text = text[:0]
		require.NoError(b, indexPieces(len(ids), func(i int) entry {
			return entry{Start: int64(i) * chunk, Length: chunk, Object: ids[i]}
		}, func(piece []byte) error {
			text = append(text, piece...)
			return nil
		}))
	}
	b.Run("render", func(b *testing.B) {
		for b.Loop() {
			render()
		}
		b.SetBytes(int64(len(text)))
	})
	b.Run("parse", func(b *testing.B) {
		render()
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			require.NoError(b, parseIndex(bytes.NewReader(text), int64(len(ids))*chunk, len(ids), func(entry) error { return nil }))
		}
	})
}

func BenchmarkCompressible(b *testing.B) {
	data := random(1 << 20)
	b.SetBytes(1 << 20)
	for b.Loop() {
		compressible(data)
	}
}
