package kopia

import (
	"bytes"
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/compression"
	"github.com/kopia/kopia/repo/content"
	"github.com/kopia/kopia/repo/encryption"
	"github.com/kopia/kopia/repo/format"
	"github.com/kopia/kopia/repo/object"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/block"
)

// newRepositoryWith opens a new repository of another format.
func newRepositoryWith(t *testing.T, f format.ContentFormat) repo.DirectRepository {
	t.Helper()
	dir := t.TempDir()
	st, err := openDirectory(t.Context(), dir, true)
	require.NoError(t, err)
	require.NoError(t, repo.Initialize(t.Context(), st, &repo.NewRepositoryOptions{BlockFormat: f}, testPassword))
	return direct(t, openStore(t, dir))
}

// putContent stores a content as kopia does.
func putContent(t *testing.T, rep repo.Repository, data []byte, c compression.Name) content.ID {
	t.Helper()
	var id object.ID
	require.NoError(t, repo.WriteSession(t.Context(), rep, repo.WriteSessionOptions{}, func(ctx context.Context, w repo.RepositoryWriter) (err error) {
		o := w.NewObjectWriter(ctx, object.WriterOptions{Compressor: c})
		defer o.Close() //nolint:errcheck // a test
		if _, err = o.Write(data); err == nil {
			id, err = o.Result()
		}
		return err
	}))
	cid, _, ok := id.ContentID()
	require.True(t, ok)
	return cid
}

// packed reads what the pack of a content has of it.
func packed(t *testing.T, rep repo.DirectRepository, id content.ID) (content.Info, []byte) {
	t.Helper()
	info, err := rep.ContentInfo(t.Context(), id)
	require.NoError(t, err)
	var buf rangeBuffer
	require.NoError(t, rep.BlobReader().GetBlob(t.Context(), info.PackBlobID, int64(info.PackOffset), int64(info.PackedLength), &buf))
	return info, buf
}

// TestUnpack reads what kopia has stored, in all of its formats.
func TestUnpack(t *testing.T) {
	text := bytes.Repeat([]byte("the same again and again, "), 4000)
	for _, f := range []format.ContentFormat{
		{Hash: "BLAKE2B-256-128", Encryption: "AES256-GCM-HMAC-SHA256"},
		{Hash: "HMAC-SHA256", Encryption: "CHACHA20-POLY1305-HMAC-SHA256"},
		{Hash: "HMAC-SHA3-224", Encryption: "AES256-GCM-HMAC-SHA256"},
	} {
		t.Run(f.Hash+" "+f.Encryption, func(t *testing.T) {
			require.Contains(t, encryption.SupportedAlgorithms(false), f.Encryption)
			rep := newRepositoryWith(t, f)
			unpack := newRangeReader(rep).unpack
			methods := append(slices.Sorted(maps.Keys(compression.ByName)), "")
			require.Greater(t, len(methods), 10)
			for i, method := range methods {
				data := append([]byte{byte(i)}, text...) // each is a content of its own
				info, in := packed(t, rep, putContent(t, rep, data, method))
				require.Equal(t, method != "", info.CompressionHeaderID != 0, method)
				got := make([]byte, len(data))
				require.NoError(t, unpack(info, in, got), method)
				require.Equal(t, data, got, method)
			}
		})
	}
}

// TestUnpackNothingElse: what is not the content is an error.
func TestUnpackNothingElse(t *testing.T) {
	rep := newRepositoryWith(t, format.ContentFormat{})
	unpack := newRangeReader(rep).unpack
	one, other := bytes.Repeat([]byte("one "), 1000), bytes.Repeat([]byte("two "), 1000)
	info, in := packed(t, rep, putContent(t, rep, one, "s2-default"))
	info2, in2 := packed(t, rep, putContent(t, rep, other, "s2-default"))
	got := make([]byte, len(one))
	require.NoError(t, unpack(info, in, got))
	require.NoError(t, unpack(info2, in2, got))

	wrong := func(change func(info *content.Info)) content.Info {
		c := info
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		info   content.Info
		packed []byte
		length int
	}{
		"another content":         {info, in2, len(one)},
		"a part":                  {info, in[:len(in)-1], len(one)},
		"nothing":                 {info, nil, len(one)},
		"one bit":                 {info, append([]byte{in[0] ^ 1}, in[1:]...), len(one)},
		"shorter entry":           {info, in, len(one) - 1},
		"longer entry":            {info, in, len(one) + 1},
		"longer than it says":     {wrong(func(i *content.Info) { i.OriginalLength-- }), in, len(one) - 1},
		"shorter than it says":    {wrong(func(i *content.Info) { i.OriginalLength++ }), in, len(one) + 1},
		"another compressor":      {wrong(func(i *content.Info) { i.CompressionHeaderID = compression.HeaderZstdFastest }), in, len(one)},
		"unknown compressor":      {wrong(func(i *content.Info) { i.CompressionHeaderID = 0xffff }), in, len(one)},
		"not compressed":          {wrong(func(i *content.Info) { i.CompressionHeaderID = 0 }), in, len(one)},
		"a key that is not known": {wrong(func(i *content.Info) { i.EncryptionKeyID = 1 }), in, len(one)},
		"no ID":                   {wrong(func(i *content.Info) { i.ContentID = content.EmptyID }), in, len(one)},
	} {
		require.Error(t, unpack(c.info, c.packed, make([]byte, c.length)), name)
	}
}

// TestFetchedContentsAreUnpacked: what was fetched needs no look-up by kopia.
func TestFetchedContentsAreUnpacked(t *testing.T) {
	open, data := regionImage(t)
	r, _ := open()
	unpacked := 0
	inner := r.ranges.unpack
	r.ranges.unpack = func(info content.Info, packed, to []byte) error {
		unpacked++
		return inner(info, packed, to)
	}
	require.NoError(t, readThrough(t, r, data, 1, 64<<10, nil))
	require.NoError(t, r.Close())
	want := 0
	for chunk := range slices.Chunk(data, int(r.layout.ChunkSize())) {
		if !block.IsZero(chunk) {
			want++
		}
	}
	require.Equal(t, want, unpacked)
}
