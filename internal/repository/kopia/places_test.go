package kopia

import (
	"context"
	"errors"
	"testing"

	"github.com/kopia/kopia/repo"
	"github.com/kopia/kopia/repo/content"
	"github.com/stretchr/testify/require"
)

// TestPlaces compares what a table has with what kopia says.
func TestPlaces(t *testing.T) {
	open, _ := regionImage(t)
	r, _ := open()
	direct, ok := r.rep.(repo.DirectRepository)
	require.True(t, ok)
	var p places
	known := 0
	each := func(do func(id content.ID)) {
		require.NoError(t, direct.ContentReader().IterateContents(t.Context(), content.IterateOptions{IncludeDeleted: true}, func(i content.Info) error {
			do(i.ContentID)
			return nil
		}))
	}
	each(func(id content.ID) {
		_, ok := p.find(id)
		require.False(t, ok, "it has learned nothing yet")
	})
	p.learn(t.Context(), r.rep)
	each(func(id content.ID) {
		got, ok := p.find(id)
		require.NotEqual(t, id.HasPrefix(), ok)
		if !ok {
			return
		}
		known++
		want, err := r.rep.ContentInfo(t.Context(), id)
		require.NoError(t, err)
		want.TimestampSeconds = 0
		require.Equal(t, want, got)
	})
	require.Greater(t, known, 100)

	another, err := content.IDFromHash("", make([]byte, shortHash))
	require.NoError(t, err)
	_, ok = p.find(another)
	require.False(t, ok)

	p.forget()
	each(func(id content.ID) {
		_, ok := p.find(id)
		require.False(t, ok, "it has forgotten")
	})
}

// TestPlacesInVain: who cannot learn knows nothing, and kopia is asked.
func TestPlacesInVain(t *testing.T) {
	open, data := regionImage(t)
	r, _ := open()
	var p places
	p.learn(t.Context(), struct{ repo.Repository }{r.rep})
	require.Empty(t, p.first)

	direct, ok := r.rep.(repo.DirectRepository)
	require.True(t, ok)
	p.learnFrom(t.Context(), endless{direct.ContentReader()})
	require.Empty(t, p.first, "too many contents")

	// Packs are gone from where the table says.
	r, c := open()
	require.NoError(t, readThrough(t, r, data, 4, 32<<10, nil))
	require.NotEmpty(t, r.ranges.places.first)
	c.err = errFull
	require.ErrorIs(t, readThrough(t, r, data, 4, 32<<10, nil), errFull)
	require.Empty(t, r.ranges.places.first)
	c.err = nil
	require.NoError(t, readThrough(t, r, data, 4, 32<<10, nil))
	require.NoError(t, r.Close())
}

// endless has more contents than a table.
type endless struct{ content.Reader }

var errNotAsked = errors.New("went on")

func (endless) IterateContents(_ context.Context, _ content.IterateOptions, each content.IterateCallback) error {
	id, err := content.IDFromHash("", make([]byte, shortHash))
	for range maxPlaces + 1 {
		if err == nil {
			err = each(content.Info{ContentID: id})
		}
	}
	if err == nil {
		return errNotAsked
	}
	return err
}
