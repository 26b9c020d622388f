package scenarios

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/blockmover/blockmover/e2e/kit"
)

// The volumes of TestRepositoryReasons, named after what happens to their images.
const (
	damaged   = "damaged"   // a bit of the newest one flips in the storage
	foreign   = "foreign"   // the newest one is of another data mover
	anonymous = "anonymous" // the newest one has no change ID
	late      = "late"      // the newest one shows the volume later
	gone      = "gone"      // the one that is asked for was deleted
	outgrown  = "outgrown"  // they have smaller chunks than the volume has now
)

// repositoryDisks are all except the last one, which is too large to be read in full.
var repositoryDisks = []string{damaged, foreign, anonymous, late, gone}

const (
	// outgrownSize is the largest size with the smallest chunks. outgrownEnd is a size with
	// chunks of four times that.
	outgrownSize = 16 << 30
	outgrownEnd  = 64<<30 + outgrownBy
	// outgrownBy is how much that volume grows before.
	outgrownBy = 64 << 20
)

// TestRepositoryReasons causes the reasons that lie in the repository, each by something that
// happens to repositories, and looks for them in the four places. The images of these backups
// are restored while the damage is there.
func TestRepositoryReasons(t *testing.T) {
	s := newScenario(t)
	all := append(slices.Clone(repositoryDisks), outgrown)
	r := newReasonsRun(s, all, customPolicy)
	s.upgradeCRDs()
	r.fill(all)
	r.grow(outgrown, outgrownSize)
	first := r.backup("first", nil, "")
	parents := r.expectAll(first, all, "Full", "NoParent")

	r.change(4 << 20)
	lateSum := s.diskSums(r.app, []string{late})[late]
	r.snapshot(late)
	r.forge(parents[foreign], func(document map[string]any) { document["mover"] = "another-mover" })
	r.forge(parents[anonymous], func(document map[string]any) { delete(document, "changeID") })
	r.grow(outgrown, outgrownSize+outgrownBy)
	r.write(outgrown, outgrownSize, 64<<10)
	r.change(5 << 20)
	second := r.backup("second", nil, "")
	seconds := r.expectAll(second, []string{damaged, late, gone, outgrown}, "Incremental")
	secondSum := s.diskSums(r.app, []string{damaged})[damaged]
	r.expectOn(parents[foreign], r.expect(second, foreign, "Incremental", "MoverChanged"))
	r.expectOn(parents[anonymous], r.expect(second, anonymous, "Incremental", "NoChangeID"))

	// Its VolumeSnapshot is older than that of the faster backup.
	lateUpload := r.upload(late)
	r.expectUpload(lateUpload, "Incremental", "ParentNotOlder")
	r.expectOn(parents[late], lateUpload)

	repair := r.damage(seconds[damaged])
	r.change(6 << 20)
	r.grow(outgrown, outgrownEnd)
	r.write(outgrown, outgrownEnd-64<<10, 64<<10)
	third := r.backup("third", nil, "")
	r.expectAll(third, []string{foreign, anonymous, late, gone}, "Incremental")
	r.expect(third, outgrown, "Full", "ChunkSizeChanged")
	r.expectOn(parents[damaged], r.expect(third, damaged, "Incremental", "ParentDamaged"))
	want, wantEnds := s.diskSums(r.app, repositoryDisks), r.ends(r.app)
	require.Equal(t, want, r.restored(third, repositoryDisks))
	require.Equal(t, wantEnds, r.ends(r.copy))
	repair()

	require.NoError(t, s.kit.DeleteBackup(s.ctx, first))
	r.snapshot(gone)
	goneUpload := r.upload(gone, "parentSnapshot: "+parents[gone].Status.SnapshotID)
	r.expectUpload(goneUpload, "Full", "ParentGone")

	for _, image := range []struct{ id, want string }{
		{lateUpload.Status.SnapshotID, lateSum},
		{seconds[damaged].Status.SnapshotID, secondSum},
		{goneUpload.Status.SnapshotID, want[gone]},
	} {
		path, err := r.stock().RestoreDisk(s.ctx, image.id, s.TempDir())
		require.NoError(t, err)
		require.Equal(t, strings.Fields(image.want)[0], hashDisk(s, path, 16<<20), "repo snapshot %s", image.id)
	}
	s.checkNothingLeft()
}

// change writes to one place of each small disk.
func (r *reasonsRun) change(offset int64) {
	r.Helper()
	for _, name := range repositoryDisks {
		r.write(name, offset, 64<<10)
	}
}

// expectAll is expect for volumes with the same outcome.
func (r *reasonsRun) expectAll(backup string, names []string, kind string, reasons ...string) map[string]kit.Object {
	r.Helper()
	uploads := map[string]kit.Object{}
	for _, name := range names {
		uploads[name] = r.expect(backup, name, kind, reasons...)
	}
	return uploads
}

// expectOn checks which image an upload was based on.
func (r *reasonsRun) expectOn(parent, upload kit.Object) {
	r.Helper()
	require.Equal(r, parent.Status.SnapshotID, upload.Status.DataMoverResult["parent"], upload)
}

// snapshot takes a VolumeSnapshot of a disk, with the name of the disk. Backups ignore it.
func (r *reasonsRun) snapshot(disk string) {
	r.Helper()
	require.NoError(r, r.kit.Apply(r.ctx, fmt.Sprintf(`apiVersion: snapshot.storage.k8s.io/v1
kind: VolumeSnapshot
metadata: {name: %[1]s, namespace: %[2]s, labels: {velero.io/exclude-from-backup: "true"}}
spec: {volumeSnapshotClassName: %[3]s, source: {persistentVolumeClaimName: %[1]s}}
`, disk, r.app.Namespace, r.kit.StorageClass)))
	_, err := r.kit.Kubectl(r.ctx, "-n", r.app.Namespace, "wait", "volumesnapshot", disk, "--for=jsonpath={.status.readyToUse}=true", "--timeout=60s")
	require.NoError(r, err)
}

// upload moves the VolumeSnapshot of a disk.
func (r *reasonsRun) upload(disk string, more ...string) kit.Object {
	r.Helper()
	name := r.name("upload-" + disk)
	r.createUpload(r.driver, name, r.app.Namespace, disk, disk, more...)
	return r.waitUpload(name)
}

// stock returns a stock kopia that sees the repository as it is now.
func (r *reasonsRun) stock() *kit.Kopia {
	r.Helper()
	stock, err := r.kit.StockKopia(r.ctx, r.app.Namespace, r.TempDir())
	require.NoError(r, err)
	return stock
}

// forge adds an image to those of a volume, as another program could write it by
// docs/format.md: the image of an upload, with the present time and another volume.json.
func (r *reasonsRun) forge(upload kit.Object, edit func(document map[string]any)) {
	r.Helper()
	stock, dir := r.stock(), r.TempDir()
	_, err := stock.RestoreDisk(r.ctx, upload.Status.SnapshotID, dir)
	require.NoError(r, err)
	path := filepath.Join(dir, "volume.json")
	text, err := os.ReadFile(path)
	require.NoError(r, err)
	var document map[string]any
	require.NoError(r, json.Unmarshal(text, &document))
	document["snapshotTime"] = time.Now().UTC()
	edit(document)
	text, err = json.Marshal(document)
	require.NoError(r, err)
	require.NoError(r, os.WriteFile(path, text, 0o600))
	require.NoError(r, stock.SnapshotDirectory(r.ctx,
		fmt.Sprintf("default@default:snapshot-data-upload-download/blockmover/%s/%s", r.app.Namespace, upload.Spec.SourcePVC), dir))
}

// damage flips a bit in the volume.json of an image, in the harness's object storage, until
// the returned function is called or the test ends.
func (r *reasonsRun) damage(upload kit.Object) (repair func()) {
	r.Helper()
	stock := r.stock()
	snapshots, err := stock.Snapshots(r.ctx)
	require.NoError(r, err)
	i := slices.IndexFunc(snapshots, func(s kit.KopiaSnapshot) bool { return s.ID == upload.Status.SnapshotID })
	require.GreaterOrEqual(r, i, 0, "repo snapshot of %s", upload)
	content, err := stock.ContentOf(r.ctx, snapshots[i], "volume.json")
	require.NoError(r, err)
	flip := func() {
		f, err := os.OpenFile(filepath.Join(os.Getenv("BLOCKMOVER_S3_DIR"), content.Object), os.O_RDWR, 0)
		require.NoError(r, err)
		b, at := make([]byte, 1), content.Offset+content.Length/2
		_, err = f.ReadAt(b, at)
		require.NoError(r, err)
		b[0] ^= 1
		_, err = f.WriteAt(b, at)
		require.NoError(r, err)
		require.NoError(r, f.Close())
	}
	flip()
	repair = sync.OnceFunc(flip)
	r.Cleanup(repair)
	return repair
}

// ends hashes the places of the disk "outgrown" where all of its data is.
func (r *reasonsRun) ends(app *kit.App) string {
	r.Helper()
	sums, err := app.Exec(r.ctx, fmt.Sprintf("for at in 0 %d %d; do dd if=/dev/%s bs=1M skip=$at count=%d 2>/dev/null | sha256sum; done",
		outgrownSize>>20, outgrownEnd>>20-outgrownBy>>20, outgrown, outgrownBy>>20))
	require.NoError(r, err)
	return sums
}
