// Command release builds the images of Blockmover for several architectures. `make release-images`
// calls it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/blockmover/blockmover/e2e/release"
)

// debianFile is of the Debian package ca-certificates.
const debianFile = "/etc/ssl/certs/ca-certificates.crt"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := newCommand().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		return 1
	}
	return 0
}

func newCommand() *cobra.Command {
	o := release.Options{}
	cmd := &cobra.Command{
		Use:   "release OUTPUT",
		Short: "Build the images of Blockmover as OCI image layouts, with their SBOMs",
		Long: "Release needs Go, and neither a container engine nor a registry. The images claim the time in\n" +
			"$SOURCE_DATE_EPOCH. It prints the digest of each image.",
		Args:          cobra.ExactArgs(1),
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
			if err != nil {
				return fmt.Errorf("$SOURCE_DATE_EPOCH is %q, want seconds since 1970", os.Getenv("SOURCE_DATE_EPOCH"))
			}
			o.Output, o.Created = args[0], time.Unix(seconds, 0)
			o.Report = func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
			if o.Certificates.File == debianFile {
				o.Certificates.Version = debianVersion(cmd.Context())
			}
			if err := o.Validate(); err != nil {
				return err
			}
			built, err := o.Build(cmd.Context())
			if err != nil {
				return err
			}
			for _, image := range built {
				fmt.Printf("%s %s %s\n", image.Digest, image.Name, image.Layout)
			}
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&o.Source, "source", ".", "`directory` of the repository")
	flags.StringVar(&o.Version, "version", "dev", "`tag` of the images")
	flags.StringVar(&o.Revision, "revision", "", "the `commit`")
	flags.StringSliceVar(&o.Architectures, "architectures", []string{"amd64", "arm64"}, "what to build for")
	flags.StringVar(&o.Certificates.File, "certificates", debianFile, "`file` of root certificates")
	return cmd
}

// debianVersion is the version of the package with the certificates, or nothing on other systems.
func debianVersion(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "dpkg-query", "--show", "--showformat=${Version}", "ca-certificates").Output()
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(out))
}
