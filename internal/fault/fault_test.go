package fault_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/internal/datapath"
	"github.com/blockmover/blockmover/internal/fault"
	"github.com/blockmover/blockmover/internal/repository"
)

func TestOf(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want fault.Class
	}{
		"unknown":                       {errors.New("read device: input/output error"), fault.Passing},
		"object store away":             {fmt.Errorf("put chunk 1: %w", repository.ErrUnavailable), fault.Outage},
		"object store away, as the end": {errors.Join(repository.ErrNotFound, repository.ErrUnavailable), fault.Outage},
		"image gone":                    {fmt.Errorf("open: %w", repository.ErrNotFound), fault.Final},
		"image damaged":                 {fmt.Errorf("open: %w", repository.ErrCorrupt), fault.Final},
		"device too small":              {fmt.Errorf("restore: %w", datapath.ErrTooSmall), fault.Final},
		"marked":                        {fmt.Errorf("plan: %w", fault.Mark(errors.New("audit is 200%"))), fault.Final},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, fault.Of(c.err))
			require.True(t, fault.Of(c.err).Known())
		})
	}
	require.NoError(t, fault.Mark(nil))
	require.False(t, fault.Class("other").Known())
}
