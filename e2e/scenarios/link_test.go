package scenarios

import (
	"fmt"
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
	use := func(address string) error {
		_, err := s.kit.Kubectl(s.ctx, "-n", s.kit.VeleroNamespace, "patch", "backupstoragelocations.velero.io", "default", "--type=merge",
			"-p", fmt.Sprintf(`{"spec":{"config":{"s3Url":"http://%s"}}}`, address))
		return err
	}
	s.Cleanup(func() {
		require.NoError(s, use(store.Host))
		require.NoError(s, link.Close())
	})
	require.NoError(s, use(link.Address))
}
