// Command demo does Blockmover's main job, from start to end, on the cluster that KUBECONFIG
// names. It backs an application up in full, changes it a little, backs it up incrementally,
// deletes and restores it, and compares the result. `make demo` runs it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/blockmover/blockmover/e2e/kit"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	d := &demo{start: time.Now()}
	d.kit = kit.FromEnv(d.step)
	err := d.run(ctx)
	stop()
	if err != nil {
		fmt.Printf("demo: FAIL: %v\n", err)
		os.Exit(1)
	}
	fmt.Println("demo: PASS")
}

const namespace = "demo"

type demo struct {
	kit   *kit.Kit
	start time.Time
}

// step prints one line of the story.
func (d *demo) step(format string, args ...any) {
	fmt.Printf("[%5.1fs] %s\n", time.Since(d.start).Seconds(), fmt.Sprintf(format, args...))
}

func (d *demo) run(ctx context.Context) error {
	d.step("install Blockmover: velero plugin add, kubectl apply -k deploy/")
	if err := d.kit.Install(ctx); err != nil {
		return err
	}
	d.step("start an application with one Filesystem (ext4) and one Block volume in namespace %s", namespace)
	app, err := d.kit.NewApp(ctx, namespace)
	if err != nil {
		return err
	}
	if err := app.WriteInitial(ctx); err != nil {
		return err
	}
	full, err := d.backup(ctx, "demo-full")
	if err != nil {
		return err
	}
	d.step("change about 1 %% of the data")
	if err := app.Change(ctx); err != nil {
		return err
	}
	want, err := app.Sums(ctx)
	if err != nil {
		return err
	}
	incremental, err := d.backup(ctx, "demo-incremental")
	if err != nil {
		return err
	}
	printComparison(full, incremental)
	for pvc, upload := range incremental {
		if result := upload.Status.DataMoverResult; result["kind"] != "Incremental" {
			return fmt.Errorf("second backup of volume %s is %s, want Incremental: %s", pvc, result["kind"], result["detail"])
		}
	}
	d.step("delete namespace %s", namespace)
	if err := d.kit.DeleteNamespace(ctx, namespace); err != nil {
		return err
	}
	d.step("velero restore create --from-backup demo-incremental")
	if err := d.kit.MustRestore(ctx, "demo", "demo-incremental"); err != nil {
		return err
	}
	return d.check(ctx, want)
}

// backup makes one backup, shows what Velero reports and returns its DataUploads.
func (d *demo) backup(ctx context.Context, name string) (map[string]kit.Object, error) {
	d.step("velero backup create %s --include-namespaces %s --snapshot-move-data --data-mover blockmover", name, namespace)
	if err := d.kit.MustBackup(ctx, name, "--include-namespaces", namespace, "--snapshot-move-data", "--data-mover", "blockmover"); err != nil {
		return nil, err
	}
	d.step("velero backup describe %s --details", name)
	described, err := d.kit.Describe(ctx, "backup", name)
	if err != nil {
		return nil, err
	}
	fmt.Println(described)
	return d.kit.DataUploads(ctx, name)
}

// printComparison shows the cost of the two backups for each volume.
func printComparison(full, incremental map[string]kit.Object) {
	fmt.Printf("\n%-8s %-12s %14s %14s %14s  %s\n", "volume", "kind", "size", "bytes read", "uploaded", "reason")
	for _, pvc := range []string{kit.FilesPVC, kit.DiskPVC} {
		for _, uploads := range []map[string]kit.Object{full, incremental} {
			r := uploads[pvc].Status.DataMoverResult
			fmt.Printf("%-8s %-12s %14s %14s %14s  %s\n", pvc, r["kind"], mebibytes(r["volumeSize"]), mebibytes(r["bytesRead"]), mebibytes(r["bytesUploaded"]), r["reason"])
		}
	}
	fmt.Println()
}

// mebibytes formats a number of bytes as MiB.
func mebibytes(s string) string {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return "?"
	}
	return fmt.Sprintf("%.2f MiB", n/(1<<20))
}

// check compares the restored application with the original, and checks that nothing is left
// behind in the cluster.
func (d *demo) check(ctx context.Context, want kit.Sums) error {
	app, err := d.kit.AppIn(ctx, namespace)
	if err != nil {
		return err
	}
	have, err := app.Sums(ctx)
	if err != nil {
		return err
	}
	if diff := want.Diff(have); diff != "" {
		return fmt.Errorf("restored data differs: %s", diff)
	}
	d.step("the application runs again; sha256 of the disk and of every file are equal (disk %.16s…)", have.Disk)
	if err := d.kit.WaitNoLeftovers(ctx); err != nil {
		return err
	}
	d.step("nothing left behind: no VolumeSnapshot, no claim, no volume, no pod")
	return nil
}
