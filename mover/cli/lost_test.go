package cli_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestNewestParentIsLost: the list of changes is relative to an image that the index does not know. With an older parent, the next image
// would lack what changed between the two.
func TestNewestParentIsLost(t *testing.T) {
	m := &museum{workbench: newWorkbench(t)}
	m.healthy = m.repo
	m.keep(volume)
	m.random(0, 4096)
	changed := filepath.Join(m.dir, "changed")
	require.NoError(t, os.WriteFile(changed, []byte(line(0, 4096)), 0o600))
	m.keep(volume, "--changed", changed)
	require.NoError(t, os.Remove(filepath.Join(m.repo, m.images[1].last("x"))))

	list := m.run("", "image", "list", "--volume", volume)
	require.ErrorContains(t, list.err, "1 images are known to be hit")
	require.Contains(t, list.out, m.images[1].id+"  "+volume)
	m.must("", "image", "verify", "--snapshot", m.images[0].id)
	require.ErrorContains(t, m.run("", "image", "verify", "--snapshot", m.images[1].id).err, "an index blob is lost")

	m.random(2*mib, 4096)
	m.write()
	next := m.backup(line(2*mib, 4096), "--changed", "-")
	require.Equal(t, "Full", next.Kind)
	require.Equal(t, "ParentGone", next.Reason)
	require.Equal(t, m.data, m.restored(next.SnapshotID, 0))
}
