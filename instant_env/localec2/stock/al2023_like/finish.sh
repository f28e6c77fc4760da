# shellcheck shell=sh disable=SC2154
# Runs in the chroot once packages, kernel and files are there, after assignments of what differs between images.
set -eu

# The accounts that AL2023 has and Debian has not.
groupadd --system wheel
useradd --system --no-create-home --shell /usr/sbin/nologin ec2-instance-connect

# sshd as Fedora's packages lay it out.
mkdir -p /usr/libexec /usr/share/empty.sshd
mv /usr/lib/openssh/* /usr/libexec/openssh/
rmdir /usr/lib/openssh
ln -s ../libexec/openssh /usr/lib/openssh
[ -x /usr/libexec/openssh/sshd-session ]
# And cloud-init's helpers: its module that prints host keys on the console looks below /usr/libexec on Amazon Linux.
mv /usr/lib/cloud-init /usr/libexec/cloud-init
ln -s ../libexec/cloud-init /usr/lib/cloud-init
[ -x /usr/libexec/cloud-init/write-ssh-key-fingerprints ]
units=/usr/lib/systemd/system
systemctl disable ssh.service ssh.socket >/dev/null 2>&1 || true
rm -f "$units/ssh.service" "$units/ssh.socket" "$units/ssh@.service" "$units/rescue-ssh.target" \
    /etc/systemd/system/sshd.service
systemctl enable sshd.service sshd-keygen@ecdsa.service sshd-keygen@ed25519.service systemd-networkd.service \
    systemd-resolved.service auditd.service chrony.service update-motd.timer
sed -i -e 's|/usr/lib/openssh/sftp-server|/usr/libexec/openssh/sftp-server|' /etc/ssh/sshd_config
grep -q '^Include /etc/ssh/sshd_config.d/' /etc/ssh/sshd_config
# AL2023 has no scripts of SysV's init. For each unit that has one, Debian's `systemctl disable` runs update-rc.d, half a
# minute under emulation on a busy host.
rm -f /etc/init.d/* /etc/rc?.d/*
# What udev enables for an interface on EC2: units of a template, which nothing disables.
mkdir -p /etc/systemd/system/multi-user.target.wants /etc/systemd/system/timers.target.wants
ln -s "$units/policy-routes@.service" /etc/systemd/system/multi-user.target.wants/policy-routes@ens5.service
ln -s "$units/refresh-policy-routes@.timer" \
    /etc/systemd/system/timers.target.wants/refresh-policy-routes@ens5.timer

# The kernel's initramfs, its entry, and GRUB's files.
release="$(ls /usr/lib/modules)"
depmod -a "$release"
dracut --force --no-hostonly --no-hostonly-cmdline --kver "$release" --omit "$omitted" \
    "/boot/initramfs-$release.img"
mkdir -p /boot/efi /boot/loader/entries /boot/grub2/x86_64-efi /usr/lib/al2023-like
cat >"/boot/loader/entries/$entry_id-$release.conf" <<EOF
title Amazon Linux ($release) 2023
version $release
linux /boot/vmlinuz-$release
initrd /boot/initramfs-$release.img
options root=UUID=$root_uuid ro $arguments
grub_users \$grub_users
grub_arg --unrestricted
grub_class amzn
EOF
cp /usr/lib/grub/x86_64-efi/*.mod /boot/grub2/x86_64-efi/
ln -s grub-editenv /usr/bin/grub2-editenv
grub2-editenv /boot/grub2/grubenv create
AL2023_ROOT_UUID="$root_uuid" grub2-mkconfig -o /boot/grub2/grub.cfg
# Without the module `linux`: while GRUB does not know that command, an entry's line calls the function of its name.
grub-mkimage --format=x86_64-efi --prefix=/EFI/amzn --output=/usr/lib/al2023-like/BOOTX64.EFI \
    part_gpt fat xfs normal configfile search search_fs_uuid test echo regexp sleep minicmd loadenv efi_gop

passwd --quiet --lock root
dpkg-query --show --showformat='${Package} ${Version} ${Architecture}\n' >"$scratch/packages"

# No machine's identity, no trace of the build.
rm -rf /etc/motd /etc/machine-id /var/lib/dbus/machine-id /etc/ssh/ssh_host_* /etc/mailname \
    /var/lib/systemd/random-seed /var/log/alternatives.log /var/log/apt /var/log/bootstrap.log /var/log/dpkg.log \
    /var/cache/apt/* /var/tmp/* /etc/apt/sources.list
# The rpm database last, for it has the files as they are: with bytecode that does not go by the time of its source,
# which the making of XFS does not keep.
python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python3.11 || true
# And ping without capability or set-id bit: systemd opens net.ipv4.ping_group_range to everybody.
cp /usr/bin/ping /usr/bin/ping.plain
chmod 0755 /usr/bin/ping.plain
mv /usr/bin/ping.plain /usr/bin/ping
python3 "$scratch/rpm_database.py" "$scratch/packages.json"
# What only cloud-init wants, so that dnf has something to remove that nobody named.
dnf --noplugins --quiet --assumeyes mark remove python3-jsonpatch python3-jsonpointer python3-oauthlib python3-pyserial \
    python3-netifaces python3-configobj >/dev/null
rm -rf /var/log/dnf* /var/log/hawkey.log /var/cache/dnf
: >/etc/machine-id
: >/etc/hostname
: >/var/lib/dpkg/available
ln -sf /run/systemd/resolve/resolv.conf /etc/resolv.conf
