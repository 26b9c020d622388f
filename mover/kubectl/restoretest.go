package kubectl

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/blockmover/blockmover/internal/fscheck"
	"github.com/blockmover/blockmover/internal/identity"
	"github.com/blockmover/blockmover/internal/kube"
	"github.com/blockmover/blockmover/internal/operation"
	"github.com/blockmover/blockmover/mover/cli"
	"github.com/blockmover/blockmover/mover/exposer"
)

// testOptions are those of verify --restore-test.
type testOptions struct {
	on                bool
	class, toolsImage string
	maxTime           time.Duration
}

func (t *testOptions) addFlags(flags *pflag.FlagSet) {
	flags.BoolVar(&t.on, "restore-test", false, "restore each image onto a scratch volume, and check the file system there")
	flags.StringVar(&t.class, "storage-class", "", "with --restore-test: `class` of the scratch volume. The default is that of the volume, or what restorePVC.storageClass has for it")
	flags.StringVar(&t.toolsImage, "tools-image", "", "with --restore-test: `image` with the programs that check. The default is the name of the mover's with -tools")
	flags.DurationVar(&t.maxTime, "max-time", 0, "with --restore-test: `time` after which no other image is begun")
}

// RestoreTest is what came of one image.
type RestoreTest struct {
	Volume string `json:"volume"`
	Backup string `json:"backup"`
	Size   int64  `json:"size"`
	// Seconds is how long the restore and the check took.
	Seconds int64 `json:"seconds"`
	operation.Tested
}

// testRestores tests images, one after the other: each needs a volume as large as its own.
func (o *verifyOptions) testRestores(ctx context.Context, chosen []*operation.View, repositories []velerov1.BackupRepository) error {
	results := []RestoreTest{}
	var errs []error
	began := time.Now()
	for n, u := range chosen {
		if o.test.maxTime > 0 && time.Since(began) > o.test.maxTime {
			_, _ = fmt.Fprintf(o.Streams.ErrOut, "%s are over: %d images are left for the next time\n", o.test.maxTime, len(chosen)-n)
			break
		}
		result, err := o.testRestore(ctx, u, repositories)
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err() // somebody has stopped it, which says nothing of the image
		}
		if err == nil {
			results = append(results, result)
			err = o.recordTest(ctx, u, result)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	rows := make([][]any, 0, len(results))
	bad := 0
	for _, r := range results {
		rows = append(rows, r.row())
		if r.Broken() || r.Result == fscheck.Failed {
			bad++
		}
	}
	errs = append(errs, o.format.print(o.Streams.Out, results, testColumns, rows))
	if bad > 0 {
		errs = append(errs, fmt.Errorf("%d of %d restore tests found errors or could not be made", bad, len(results)))
	}
	return errors.Join(errs...)
}

// testRestore tests one image. An error is for what is not about the image.
func (o *verifyOptions) testRestore(ctx context.Context, u *operation.View, repositories []velerov1.BackupRepository) (RestoreTest, error) {
	repository, err := repositoryOf(u, repositories)
	if err != nil {
		return RestoreTest{}, err
	}
	job, err := o.planTest(ctx, u, repository)
	if err != nil {
		return RestoreTest{}, err
	}
	result := RestoreTest{Volume: u.Claim().String(), Backup: u.Upload.Labels[velerov1.BackupNameLabel], Size: imageOf(u).LogicalBytes}
	_, _ = fmt.Fprintf(o.Streams.ErrOut, "restoring volume %s of backup %s onto a scratch volume of %s\n", result.Volume, result.Backup, size(result.Size))
	began := time.Now()
	report, restored, err := o.runTest(ctx, job)
	result.Seconds = int64(time.Since(began).Seconds())
	if err != nil {
		return RestoreTest{}, err
	}
	switch restored {
	case restoreDone:
		// The restore has read all of it, and has compared what it wrote.
		err = o.record(ctx, u, Verified{result.Volume, result.Backup, cli.Verification{OK: true, Size: result.Size}})
	case restoreFailed:
		report = o.explainTest(ctx, u, repository, report)
	case restoreUnknown:
	}
	result.Tested = operation.Tested{At: time.Now().UTC().Truncate(time.Second), Report: report}
	return result, err
}

// explainTest finds out whether the image is why it could not be restored.
func (o *verifyOptions) explainTest(ctx context.Context, u *operation.View, repository string, report fscheck.Report) fscheck.Report {
	found, err := o.verify(ctx, repository, []*operation.View{u})
	if len(found) == 1 && !found[0].OK {
		return fscheck.Report{Result: operation.Damaged, Detail: found[0].detail()}
	}
	if err != nil {
		report.Detail += "; " + err.Error()
	}
	return report
}

func (o *verifyOptions) planTest(ctx context.Context, u *operation.View, repository string) (*batchv1.Job, error) {
	plan, err := o.planPod(ctx, u.Upload.Spec.BackupStorageLocation)
	if err != nil {
		return nil, err
	}
	class := o.test.class
	if csi := u.Upload.Spec.CSISnapshot; class == "" && csi != nil {
		class = cmp.Or(plan.Config.RestorePVC.StorageClass[csi.StorageClass], csi.StorageClass)
	}
	if err := o.checkClass(ctx, class); err != nil {
		return nil, err
	}
	plan.StorageClass = class
	limit := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		limit = min(time.Until(deadline), plan.Config.PodDeadline.Duration)
	}
	return plan.RestoreTest(o.namespace(), "blockmover-restore-test-", exposer.RestoreTest{
		Restore: []string{
			"image", "restore", "--repo", cli.AddressOf(o.namespace(), repository), "--snapshot", u.Upload.Status.SnapshotID,
			"--device", exposer.DevicePath, "--verify",
		},
		Check:      []string{"/fscheck", "-timeout", limit.Truncate(time.Second).String(), exposer.DevicePath},
		ToolsImage: cmp.Or(o.test.toolsImage, toolsImageOf(plan.Image)),
		Class:      class,
		Size:       imageOf(u).LogicalBytes,
	})
}

// checkClass refuses a storage class that would keep the scratch volume of each test.
func (o *verifyOptions) checkClass(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	class, err := kube.Find(ctx, o.Client, client.ObjectKey{Name: name}, &storagev1.StorageClass{})
	if err == nil && class != nil && exposer.Keeps(class) {
		err = fmt.Errorf("StorageClass %s does not delete the volumes of PVCs that are deleted, and each test would leave one: name another class with --storage-class", name)
	}
	return err
}

// toolsImageOf returns the name of the image that is built beside that of the mover. A digest is of
// one image, a tag of both.
func toolsImageOf(mover string) string {
	name := imageRepository(mover)
	tag, _, _ := strings.Cut(mover[len(name):], "@")
	return name + "-tools" + tag
}

// restoring is how far the restore of a test has come.
type restoring int

const (
	restoreUnknown restoring = iota
	restoreFailed
	restoreDone
)

// runTest runs a Job, and deletes it with its volume. If the image was not restored, or if nothing was
// found out, the report says why.
func (o *verifyOptions) runTest(ctx context.Context, job *batchv1.Job) (report fscheck.Report, restored restoring, err error) {
	failed := func(why string) fscheck.Report { return fscheck.Report{Result: fscheck.Failed, Detail: why} }
	settings, err := o.settings(ctx)
	if err != nil {
		return report, restoreUnknown, err
	}
	remove, err := o.createJob(ctx, job)
	if err != nil {
		return report, restoreUnknown, err
	}
	defer remove()
	starting, cancel := context.WithTimeout(ctx, settings.PreparingTimeout.Duration)
	defer cancel()
	if _, err := o.awaitPod(starting, job, hasBegun); err != nil {
		return failed(err.Error()), restoreUnknown, nil
	}
	pod, err := o.awaitPod(ctx, job, func(pod *corev1.Pod) bool { return pod.Status.Phase != corev1.PodPending })
	if err != nil {
		return failed(err.Error()), restoreUnknown, nil
	}
	if !hasRestored(pod) {
		return failed("restore: " + lastLine(o.lastWords(ctx, pod, exposer.RestoreContainer))), restoreFailed, nil
	}
	found := false
	err = o.readLog(ctx, pod.Name, exposer.CheckContainer, func(log io.Reader) error {
		return eachLine(log, func(line string) error {
			if r, ok := fscheck.Parse(line); ok {
				report, found = r, true
			}
			return nil
		})
	})
	switch {
	case err != nil:
		return failed(err.Error()), restoreDone, nil
	case !found:
		return failed("the check has no result: " + lastLine(o.lastWords(ctx, pod, exposer.CheckContainer))), restoreDone, nil
	}
	return report, restoreDone, nil
}

// hasBegun reports whether the restore of a test runs or ran. Before that, its volume or its image may
// be missing.
func hasBegun(pod *corev1.Pod) bool {
	for _, c := range pod.Status.InitContainerStatuses {
		if c.State.Running != nil || c.State.Terminated != nil {
			return true
		}
	}
	return pod.Status.Phase != corev1.PodPending
}

// hasRestored reports whether the restore of a test has ended well.
func hasRestored(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.InitContainerStatuses, func(c corev1.ContainerStatus) bool {
		return c.Name == exposer.RestoreContainer && c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
	})
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// recordTimeout bounds the record of a result.
const recordTimeout = 10 * time.Second

// recordTest keeps the result on the DataUpload, and makes an event of the Backup if it is a bad one.
func (o *verifyOptions) recordTest(ctx context.Context, u *operation.View, r RestoreTest) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), recordTimeout) // also when the time is over
	defer cancel()
	if err := o.annotate(ctx, u, map[string]string{identity.AnnotationTested: r.String()}); err != nil {
		return err
	}
	switch r.Result {
	case fscheck.Errors:
		return o.warn(ctx, r.Backup, "FileSystemErrors", fmt.Sprintf("the %s in the image of volume %s has errors: %s", r.Filesystem, r.Volume, r.Detail))
	case fscheck.Failed:
		return o.warn(ctx, r.Backup, "RestoreTestFailed", fmt.Sprintf("the restore of volume %s could not be tested: %s", r.Volume, r.Detail))
	default:
		return nil // an image that is damaged has its event
	}
}

// testedAt is zero for an image that was never tested.
func testedAt(u *operation.View) time.Time {
	if t, err := u.TestedOf(); err == nil && t != nil {
		return t.At
	}
	return time.Time{}
}

var testColumns = []column{{"VOLUME", false}, {"BACKUP", false}, {"RESULT", false}, {"FILE SYSTEM", false}, {"SIZE", false}, {"TIME", false}, {"DETAIL", false}}

func (r RestoreTest) row() []any {
	result := string(r.Result)
	if r.Result == fscheck.None {
		result = "no file system"
	}
	return []any{r.Volume, r.Backup, result, or(r.Filesystem), size(r.Size), lasting(time.Duration(r.Seconds) * time.Second), or(r.Detail)}
}
