package kopia

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/object"
	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/blake2b"
	"github.com/blockmover/blockmover/internal/repository"
)

// cut makes n contents of a length.
func cut(n, length int) [][]byte {
	return slices.Collect(slices.Chunk(random(n*length), length))
}

func TestLookUp(t *testing.T) {
	if !blake2b.Available() {
		t.Skip("the processor hashes one content at a time")
	}
	const secret = "secret"
	many, err := blake2b.New([]byte(secret))
	require.NoError(t, err)
	known := &sums{known: map[sumKey][sumSize]byte{}}
	h := hasher{secret, many, known}
	calls := 0
	one := func(output []byte, _ *bytes.Reader) []byte {
		calls++
		return append(output, make([]byte, sumSize)...)
	}
	// isKnown asks for the hash of some bytes, as kopia does.
	isKnown := func(secret string, data []byte) bool {
		calls = 0
		sum := lookUp(known, secret, one)(nil, bytes.NewReader(data))
		require.Len(t, sum, hashSize)
		return calls == 0
	}

	contents := cut(7, 256)
	forget, err := h.hash(contents)
	require.NoError(t, err)
	for i, c := range contents {
		require.True(t, isKnown(secret, c), "content %d", i)
		require.False(t, isKnown("another", c), "of another repository")
		require.False(t, isKnown(secret, c[:128]), "the beginning")
		require.False(t, isKnown(secret, bytes.Clone(c)), "the same elsewhere")
	}
	require.False(t, isKnown(secret, nil))
	forget()
	require.False(t, isKnown(secret, contents[0]), "forgotten")
	require.Empty(t, known.known)

	for name, contents := range map[string][][]byte{
		"none":              nil,
		"one":               cut(1, 256),
		"different lengths": append(cut(7, 256), random(128)),
		"no whole blocks":   cut(8, 200),
		"empty":             make([][]byte, 8),
	} {
		forget, err := h.hash(contents)
		require.NoError(t, err, name)
		require.Empty(t, known.known, name)
		forget()
	}
	forget, err = hasher{}.hash(cut(8, 256))
	require.NoError(t, err)
	forget()
}

// TestHashAhead compares the names of contents that were hashed ahead with those
// that kopia gives.
func TestHashAhead(t *testing.T) {
	for _, function := range []string{DefaultBlockHash, "HMAC-SHA256-128", "BLAKE2B-256", "HMAC-SHA256", "HMAC-SHA3-256"} {
		rep := newRepositoryWithHash(t, function)
		_, session, err := rep.NewWriter(t.Context(), repo.WriteSessionOptions{})
		require.NoError(t, err)
		w, err := newObjectWriter(rep, session, repository.NoCompression)
		require.NoError(t, err)
		ours, ok := hashFunctions[function]
		require.Equal(t, ok && ours.available(), w.hasher.many != nil, function)

		for _, n := range []int{1, 2, 7, 8, 9, 15, 16, 17, 40} {
			contents := cut(n, 8<<10)
			var got []object.ID
			require.NoError(t, w.writeAll(t.Context(), contents, func(i int, id object.ID, _ int64) error {
				require.Len(t, got, i)
				got = append(got, id)
				return nil
			}))
			require.Empty(t, ahead.known)
			for i, data := range contents {
				id, err := contentIDOf(rep, data)
				require.NoError(t, err)
				require.Equal(t, object.DirectObjectID(id), got[i], "%s, %d of %d", function, i, n)
			}
		}
		require.NoError(t, session.Close(t.Context()))
	}
}

// newRepositoryWithHash opens a new repository with another hash function.
func newRepositoryWithHash(t *testing.T, function string) repo.DirectRepository {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repository")
	require.NoError(t, CreateFilesystemWithHash(t.Context(), dir, testPassword, function))
	s := openStore(t, dir)
	rep, ok := s.rep.(repo.DirectRepository)
	require.True(t, ok)
	require.Equal(t, function, rep.ContentReader().ContentFormat().GetHashFunction())
	return rep
}
