package scenarios

import (
	"net/url"
	"os"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// overLink puts a link of 20 ms and 125 MB/s before the object store until the end of the test, if
// BLOCKMOVER_LINK is set.
func (s *scenario) overLink() {
	s.Helper()
	if os.Getenv("BLOCKMOVER_LINK") == "" {
		return
	}
	store, err := url.Parse(os.Getenv("BLOCKMOVER_S3_URL"))
	require.NoError(s, err)
	link, err := kit.StartLink(store.Hostname(), store.Host, 20*time.Millisecond, 125e6)
	require.NoError(s, err)
	s.Cleanup(func() {
		require.NoError(s, s.kit.UseStore(s.ctx, store.Host))
		require.NoError(s, link.Close())
	})
	require.NoError(s, s.kit.UseStore(s.ctx, link.Address))
}
